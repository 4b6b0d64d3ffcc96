"""Where the models of a run lie, as every process sees it."""

from contextlib import suppress
from functools import cache
from pathlib import Path

from rayjobs.errors import OptionError
from rayjobs.model_checks import MODEL, check_start, model_folder
from rayjobs.options import EMBEDDED, JobOptions
from rayjobs.options.model import ModelOptions
from sharpening.checks import UNLOADED


def pipeline_folder(name: str) -> str:
    """The pipeline folder on this node.

    Args:
        name: A folder, or `embedded` for the one inside the package, which lies elsewhere on every node.

    Returns:
        The folder.
    """
    if name != EMBEDDED:
        return name
    from sharpening.shapes import assets

    return str(assets.pipeline_folder())


def pipeline(options: ModelOptions) -> str:
    """The pipeline as every node knows it; one on the hub is downloaded.

    Args:
        options: The job's options.

    Returns:
        A folder, or `embedded`: that one lies inside the package, elsewhere on every node.
    """
    name = options.pretrained_model_name_or_path
    if name == EMBEDDED:
        return EMBEDDED
    return _here(name) or _fetched(MODEL, name, getattr(options, "revision", None), whole=True)


def vae(options: ModelOptions) -> str | None:
    """The VAE that takes the place of the pipeline's own, as every node knows it.

    Args:
        options: The job's options.

    Returns:
        A folder; `None` for the pipeline's own VAE.
    """
    name = options.pretrained_vae_model_name_or_path
    return None if name is None else part("pretrained_vae_model_name_or_path", name)


def part(option: str, name: str) -> str:
    """One model of a pipeline, such as a VAE, as every node knows it; one on the hub is downloaded.

    Args:
        option: The option that names it, for errors.
        name: A folder or a hub id.

    Returns:
        A folder.

    Raises:
        OptionError: If it cannot be downloaded.
    """  # noqa: DOC502
    return _here(name) or _fetched(option, name, None, whole=False)


def settle_model(options: JobOptions) -> JobOptions:
    """Have here what is on the hub, check it as folders were checked before the start, and read what only it tells.

    Args:
        options: Validated options.

    Returns:
        A copy that knows the resolution; the options themselves where nothing is on the hub.

    Raises:
        OptionError: If the model is none that the job can start from.
    """  # noqa: DOC502
    own = options.pretrained_vae_model_name_or_path
    if model_folder(options) is not None and (own is None or _here(own)):
        return options
    here = options.model_copy(update={"pretrained_vae_model_name_or_path": vae(options)})
    return options.model_copy(update={"resolution": check_start(here, Path(pipeline_folder(pipeline(options))))})


def _here(name: str) -> str | None:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else None


@cache  # all processes of a run get what the hub had when it began
def _fetched(option: str, name: str, revision: str | None, whole: bool) -> str:
    """Download what loading needs of a pipeline (`whole`) or of one model, and nothing else that its repository has."""
    try:
        return _fetch_pipeline(name, revision) if whole else _fetch_part(name)
    except Exception as error:  # the hub's, the network's, the disk's, and diffusers' own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OptionError(
            option, f"{name} cannot be downloaded ({reason})",
            "check the name, the network and HF_TOKEN, or pass a folder",
        ) from error  # fmt: skip


def _fetch_pipeline(name: str, revision: str | None) -> str:
    """As `from_pretrained` does: safetensors rather than pickles, no ONNX, Flax or single-file copies, no variants."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from sharpening.policies.loading import no_progress_bars

    with suppress(EntryNotFoundError):
        hf_hub_download(name, "README.md", revision=revision)  # its licence goes into the model card of what is made
    with no_progress_bars():
        return str(DiffusionPipeline.download(name, revision=revision, **dict.fromkeys(UNLOADED)))


def _fetch_part(name: str) -> str:
    """A model's configuration and its safetensors; a pickle where it has none."""
    from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
    from huggingface_hub import snapshot_download

    folder = str(snapshot_download(name, allow_patterns=[CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME]))
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():
        folder = str(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    return folder
