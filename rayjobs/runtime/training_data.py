"""What a run learns from: the source of training examples that its options name, and pairs that it ranks itself."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import EMBEDDED, RANK, ImageOptions, JobOptions, PairOptions, PromptOptions
from sharpening.data.prompts import Stream
from sharpening.data.source import Kind
from sharpening.evaluation.run_folder import RunFolder
from sharpening.slots import tasks

if TYPE_CHECKING:
    from sharpening.data.pairs import PairFile
    from sharpening.data.source import Batch, Source
    from sharpening.methods.ranking import RankedPairs

PAIRS = "pairs.parquet"
EMBEDDED_IMAGES = 1_000_000  # scenes that the embedded world can render; none is drawn before it is asked for


class OwnPairs:
    """The pairs that a run ranks itself: a source whose file is opened when the first of them is asked for.

    Args:
        path: The file that will be there by then.
        resolution: Height and width of the images, in pixels.

    Attributes:
        kind: "pairs".
    """

    kind: Kind = "pairs"

    def __init__(self, path: Path, resolution: int) -> None:
        self._path, self._resolution = path, resolution

    @cached_property
    def _file(self) -> "PairFile":
        from sharpening.data.pairs import CAPTION, PairFile

        return PairFile(self._path, CAPTION, self._resolution)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._file)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some pairs."""
        return self._file.prompts(indices)

    def batch(self, indices: Sequence[int]) -> "Batch":
        """Some pairs with their captions."""
        return self._file.batch(indices)


def training_source(options: JobOptions, folder: RunFolder) -> "Source | None":
    """The examples that a run learns from.

    Args:
        options: The run's options.
        folder: Its folder, which may hold pairs that an earlier start of the run ranked.

    Returns:
        The source; `None` while the pairs are still to be ranked.

    Raises:
        OptionError: If a file cannot be used.
    """  # noqa: DOC502
    if isinstance(options, PairOptions) and options.train_data == RANK:
        return ranked_pairs(options, folder) if (folder.path / PAIRS).exists() else None
    return open_source(options)


def open_source(options: JobOptions) -> "Source":
    """The examples that a run finds ready.

    Args:
        options: The run's options.

    Returns:
        The source; of a file, nothing but its description is read.

    Raises:
        OptionError: If a file cannot be used.
    """
    from sharpening.data.prompts import PromptFileError
    from sharpening.data.source import DataFileError, PromptSource

    try:
        if isinstance(options, ImageOptions):
            return _images(options)
        if isinstance(options, PairOptions) and options.train_data != RANK:
            from sharpening.data.pairs import PairFile

            return PairFile(options.train_data, options.caption_column, resolution(options))
        return PromptSource(training_prompts(options))
    except PromptFileError as error:
        raise OptionError("prompts", str(error), "pass another file") from error
    except DataFileError as error:
        raise OptionError("train_data", str(error), "pass another file") from error


def _images(options: JobOptions) -> "Source":
    assert isinstance(options, ImageOptions)
    if options.train_data == EMBEDDED:
        from sharpening.shapes.dataset import EmbeddedImages

        return EmbeddedImages(EMBEDDED_IMAGES)
    from sharpening.data.images import ImageFile

    return ImageFile(options.train_data, options.image_column, options.caption_column, resolution(options))


def ranked_pairs(options: JobOptions, folder: RunFolder) -> OwnPairs:
    """The pairs that a run ranks itself, whether it has done so yet or not.

    Args:
        options: The run's options.
        folder: Its folder.

    Returns:
        The source.
    """
    return OwnPairs((folder.path / PAIRS).resolve(), resolution(options))


@dataclass(frozen=True)
class RankTask:
    """A batch of prompts to draw images for and rank.

    Attributes:
        items: Places of the prompts among the training prompts; they seed the noise.
        prompts: The prompts.
        samples: Images of a prompt.
    """

    items: tuple[int, ...]
    prompts: tuple[str, ...]
    samples: int


def rank_tasks(options: JobOptions) -> list[RankTask]:
    """Cut the prompts that a run ranks pairs for into tasks.

    Args:
        options: The run's options.

    Returns:
        Tasks of `rollout_batch_size` prompts.
    """
    assert isinstance(options, PairOptions)
    prompts, size = training_prompts(options), options.rollout_batch_size
    stream = Stream(len(prompts), options.seed, size)
    wanted = [stream.index(*divmod(place, size)) for place in range(min(options.ranked_prompts, len(prompts)))]
    return [
        RankTask(tuple(part), tuple(prompts[i] for i in part), options.ranked_samples) for part in tasks(wanted, size)
    ]


def write_ranked(found: "Sequence[RankedPairs]", options: JobOptions, folder: RunFolder) -> tuple[int, str]:
    """Keep ranked pairs in the run folder.

    Args:
        found: What the tasks found, in order.
        options: The run's options.
        folder: Its folder.

    Returns:
        How many pairs there are, and what became of the other prompts, as the end of a sentence.

    Raises:
        RunStopped: If too large a share of the prompts could not be scored, or no pair is left.
    """
    from sharpening.data.pairs import write_pairs

    reasons = Counter(reason for part in found for _, reason in part.dropped)
    ties, asked = sum(len(part.ties) for part in found), sum(len(task.items) for task in rank_tasks(options))
    if sum(reasons.values()) > options.max_failed_share * asked:
        raise RunStopped(f"{sum(reasons.values())} of {asked} prompts could not be ranked ({_counts(reasons)})")
    pairs = sum(len(part.slots) for part in found)
    if not pairs:
        raise RunStopped("no prompt has a best and a worst image: the reward does not tell its images apart")
    write_pairs(folder.path / PAIRS, (row for part in found for row in part.rows()))
    unused = [f"{ties} ties"] * bool(ties) + [_counts(reasons)] * bool(reasons)
    return pairs, f" ({', '.join(unused)} left out)" if unused else ""


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def resolution(options: JobOptions) -> int:
    """Height and width of the model's images, in pixels."""
    if options.resolution is None:
        raise OptionError("resolution", "the model does not say how large its images are", "pass --resolution")
    return options.resolution


def training_prompts(options: JobOptions) -> list[str]:
    """The prompts that a run draws images for.

    Args:
        options: The run's options.

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

    return load_prompts(Path(options.prompts).expanduser(), options.caption_column)
