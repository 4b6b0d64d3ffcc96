"""What a run learns from: the source of training examples that its options name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjobs.errors import OptionError
from rayjobs.options import (
    EMBEDDED,
    RANK,
    DatasetOptions,
    ImageOptions,
    JobOptions,
    PairOptions,
    PromptOptions,
    ShapeOptions,
)

if TYPE_CHECKING:
    from sharpening.data.rows import Rows
    from sharpening.data.source import Source

TEXTS = (".txt", ".jsonl")
EMBEDDED_IMAGES = 1_000_000  # scenes that the embedded world can render; none is drawn before it is asked for


def open_source(options: JobOptions) -> "Source":
    """The examples that a run finds ready.

    Args:
        options: The run's options.

    Returns:
        The source; of data that may be large, nothing but their description is read.

    Raises:
        OptionError: If the data cannot be used.
    """  # noqa: DOC502
    with data_errors(options):
        if isinstance(options, ImageOptions):
            return _images(options)
        if isinstance(options, PairOptions) and not options.ranks:
            from sharpening.data.buckets import BucketedPairs
            from sharpening.data.pairs import PairFile

            pairs = PairFile(_rows(options), options.caption_column, resolution(options))
            if not options.aspect_ratio_buckets:
                return pairs
            return BucketedPairs(pairs, _shapes(options), at_least=options.prompts_per_update)
        return prompt_source(options)


def check_source(options: JobOptions) -> None:
    """Refuse training data that cannot be opened, or of which a look at some examples finds none that can be used.

    Args:
        options: The run's options.

    Raises:
        OptionError: If so.
    """  # noqa: DOC502
    from sharpening.data.reading import look

    if isinstance(options, ShapeOptions):  # sizes of all images are read once, when the run starts
        options = options.model_copy(update={"aspect_ratio_buckets": False})
    source = open_source(options)
    if place(options)[1] != EMBEDDED:
        with data_errors(options):
            look(source)


def source_note(source: "Source | None") -> str:
    """What a run's log says about its examples.

    Args:
        source: The examples.

    Returns:
        Shapes and numbers of buckets; empty where there are none.
    """
    from sharpening.data.buckets import BucketedImages, BucketedPairs

    if not isinstance(source, (BucketedImages, BucketedPairs)):
        return ""
    shapes = ", ".join(
        f"{width}×{height} ({n})" for (height, width), n in zip(source.sizes, source.counts, strict=True)
    )
    unreadable = f"; {source.left_out} that cannot be opened are left out" if source.left_out else ""
    return f"{len(source)} {source.kind} in {len(source.sizes)} shapes, width × height: {shapes}{unreadable}"


def place(options: JobOptions) -> tuple[str, str]:
    """Where the examples come from.

    Args:
        options: The run's options.

    Returns:
        The option that says it, and its value.

    Raises:
        OptionError: If several options say it, or a configuration is named of no data set.
    """
    data: Any = options
    names = ["dataset_name", "train_data_dir", "train_data"]
    if isinstance(data, PromptOptions) and not (isinstance(data, PairOptions) and not data.ranks):
        names = ["dataset_name", "prompts"]
    given = {name: getattr(options, name, None) for name in names}
    found = [name for name, value in given.items() if value not in (None, EMBEDDED, RANK)] or names[-1:]
    if len(found) > 1:
        raise OptionError(found[0], f"is given beside --{found[1]}", "pass one of the two")
    if data.dataset_config_name is not None and found[0] != "dataset_name":
        raise OptionError("dataset_config_name", "names a configuration of no data set", "pass --dataset_name")
    return found[0], str(given[found[0]])


@contextmanager
def data_errors(options: JobOptions) -> Iterator[None]:
    """Turn what is wrong with data into an error that names the option and what to do.

    Args:
        options: The run's options.

    Yields:
        Nothing.

    Raises:
        OptionError: If a block finds that the data cannot be used.
    """
    from sharpening.data.prompts import PromptFileError
    from sharpening.data.source import DataFileError

    try:
        yield
    except (PromptFileError, DataFileError) as error:
        problem, _, remedy = str(error).rpartition("; ")
        option = place(options)[0]
        for name, denied in (("caption_column", "not image bytes"), ("image_column", "not text")):
            if f"column {getattr(options, name, None)!r}" in problem and denied not in problem:
                option = name
        if "BuilderConfig" in problem or "onfig name" in problem:
            option = "dataset_config_name"
        raise OptionError(option, problem or str(error), remedy if problem else "pass other data") from error


def _rows(options: JobOptions) -> "Rows":
    """The rows that an option names, or the choice of them that is learnt from."""
    from sharpening.data.hub import DatasetRows
    from sharpening.data.opening import open_rows
    from sharpening.data.rows import ChosenRows

    assert isinstance(options, DatasetOptions)
    option, value = place(options)
    if option == "dataset_name":
        rows: Rows = DatasetRows(value, options.dataset_config_name)
    else:
        rows = open_rows(value)
    return rows if options.max_train_samples is None else ChosenRows(rows, options.max_train_samples, options.seed)


def _images(options: JobOptions) -> "Source":
    assert isinstance(options, ImageOptions)
    if place(options)[1] == EMBEDDED:
        from sharpening.shapes.dataset import EmbeddedImages

        return EmbeddedImages(min(options.max_train_samples or EMBEDDED_IMAGES, EMBEDDED_IMAGES))
    if options.aspect_ratio_buckets:
        from sharpening.data.buckets import BucketedImages

        sizes = _shapes(options)
        rows, columns = _rows(options), (options.image_column, options.caption_column)
        return BucketedImages(rows, *columns, sizes, at_least=options.prompts_per_update)
    from sharpening.data.images import ImageFile

    return ImageFile(_rows(options), options.image_column, options.caption_column, resolution(options))


def _shapes(options: JobOptions) -> "tuple[tuple[int, int], ...]":
    """The aspect buckets of the model at the run's resolution."""
    from rayjobs.runtime import models
    from sharpening.data.buckets import bucket_sizes, step_of
    from sharpening.policies import resolution_steps

    unit, largest = resolution_steps(models.pipeline_folder(models.pipeline(options))) or (8, None)
    side = resolution(options)
    return bucket_sizes(side, step_of(side, unit), largest)


def prompt_source(options: JobOptions) -> "Source":
    """The prompts that a run draws images for; long tables stay on disk.

    Args:
        options: The run's options.

    Returns:
        The source.

    Raises:
        OptionError: If the file is of no kind that prompts are read from.
    """
    from sharpening.data.prompt_rows import PromptRows
    from sharpening.data.shuffle import shuffled
    from sharpening.data.source import PromptSource

    assert isinstance(options, PromptOptions)
    option, value = place(options)
    if option == "dataset_name" or not (value == EMBEDDED or value.endswith(TEXTS)):
        path = Path(value).expanduser()
        if option == "prompts" and path.suffix != ".parquet" and not path.is_dir():
            kinds = f"{', '.join(TEXTS)} or .parquet, or a folder"
            raise OptionError("prompts", f"{value} is no prompt file", f"pass one that ends in {kinds}")
        return PromptRows(_rows(options), options.caption_column)
    prompts = training_prompts(options, keep_blank=True)
    chosen = min(options.max_train_samples or len(prompts), len(prompts))
    if chosen == len(prompts):
        return PromptSource(prompts)
    return PromptSource([prompts[shuffled(i, len(prompts), options.seed, "samples")] for i in range(chosen)])


def resolution(options: JobOptions) -> int:
    """Height and width of the model's images, in pixels."""
    if options.resolution is None:
        raise OptionError("resolution", "the model does not say how large its images are", "pass --resolution")
    return options.resolution


def training_prompts(options: JobOptions, keep_blank: bool = False) -> list[str]:
    """The prompts of a list that is held in memory.

    Args:
        options: The run's options.
        keep_blank: Whether rows without text stay, as "".

    Returns:
        The prompts.

    Raises:
        PromptFileError: If the file cannot be used.
    """  # noqa: DOC502
    assert isinstance(options, PromptOptions)
    if options.prompts == EMBEDDED:
        from sharpening.shapes import assets

        return list(assets.training_prompts())
    from sharpening.data.prompts import load_prompts

    return load_prompts(Path(options.prompts).expanduser(), options.caption_column, keep_blank)
