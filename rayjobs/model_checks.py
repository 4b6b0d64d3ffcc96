"""What can be known to be wrong with a job's model before anything heavy starts; imports neither torch nor Ray.

Each check raises an `OptionError` that names the option, what is wrong with it and what to do.
"""

from collections.abc import Mapping
from pathlib import Path

from rayjobs.errors import OptionError, reason_of
from rayjobs.options import JobOptions
from rayjobs.options.declaring import EMBEDDED
from rayjobs.options.model import ModelOptions

MODEL = "pretrained_model_name_or_path"


def local_folder(option: str, value: str) -> Path | None:
    """The folder a model option names, or `None` when it is a hub id.

    `owner/name` is a hub id unless something of that name, or a folder called `owner`, lies here.

    Args:
        option: The option, for the message.
        value: Its value.

    Returns:
        The folder, or `None`.

    Raises:
        OptionError: If it is neither.
    """
    from sharpening.checks import ModelFolderError, local_path

    try:
        return local_path(value, f"pass a model folder, a hub id or '{EMBEDDED}'")
    except ModelFolderError as error:
        raise OptionError(option, *reason_of(error)) from error


def model_folder(options: ModelOptions) -> Path | None:
    """Where a job's model lies.

    Args:
        options: The options.

    Returns:
        Its folder; `None` when it is on the hub.

    Raises:
        OptionError: If the option names neither a folder nor a hub id.
    """  # noqa: DOC502
    value = options.pretrained_model_name_or_path
    if value == EMBEDDED:
        from sharpening.shapes.assets import pipeline_folder

        return pipeline_folder()
    return local_folder(MODEL, value)


def check_pipeline(options: ModelOptions, folder: Path, scales: Mapping[str, float]) -> int | None:
    """Refuse an incomplete or truncated pipeline, a VAE that does not fit it, and what it cannot draw.

    Args:
        options: The options.
        folder: The pipeline's folder.
        scales: Guidance scales that it is to draw at, by option.

    Returns:
        The resolution in pixels; `None` where neither the options nor the folder's JSON say it.

    Raises:
        OptionError: For the first thing that is wrong.
    """
    from sharpening.checks import ModelFolderError
    from sharpening.policies import family_of, native_resolution

    try:
        family_of(folder)
    except ModelFolderError as error:
        raise OptionError(MODEL, *reason_of(error)) from error
    check_vae_folder(options, folder)
    check_guidance(folder, scales)
    if options.resolution is None:
        return native_resolution(folder)
    check_resolution(options.resolution, folder)
    return options.resolution


def check_model(options: JobOptions) -> int | None:
    """Refuse a model that a training job cannot start from, as far as that can be told without the hub.

    Args:
        options: The options.

    Returns:
        The resolution in pixels; `None` when only the hub could tell.

    Raises:
        OptionError: If the model, or what is asked of it, is wrong.
    """
    folder = model_folder(options)
    if folder is None:
        return options.resolution
    if options.revision is not None:
        raise OptionError("revision", "only models on the hub have revisions", "leave it out, or pass a hub id")
    return check_start(options, folder)


def check_start(options: JobOptions, folder: Path) -> int | None:
    """Refuse a pipeline folder that a training job cannot start from; one from the hub is checked once it is here.

    Args:
        options: The options.
        folder: The pipeline's folder.

    Returns:
        The resolution in pixels; `None` where neither the options nor the folder's JSON say it.

    Raises:
        OptionError: For the first thing that is wrong.
    """  # noqa: DOC502
    looks = () if options.skip_evaluation else options.eval_guidance_scales
    scales = {"guidance_scale": options.guidance_scale, "eval_guidance_scales": max(looks, default=1.0)}
    scales["loss_guidance_scale"] = getattr(options, "loss_guidance_scale", 1.0)
    resolution = check_pipeline(options, folder, scales)
    check_targets(options, folder)
    return resolution


def check_resolution(resolution: int, folder: Path) -> None:
    """Refuse a resolution that the model's denoiser and VAE cannot draw.

    Args:
        resolution: In pixels.
        folder: A whole pipeline folder.

    Raises:
        OptionError: If they cannot.
    """
    from sharpening.policies import resolution_steps

    step, largest = resolution_steps(folder) or (1, None)  # where the JSON does not say, loading the model will
    fitting = max(step, min(resolution // step * step, largest or resolution))
    if resolution % step or (largest and resolution > largest):
        limit = f" up to {largest}" if largest else ""
        raise OptionError(
            "resolution", f"is {resolution}, but the model draws multiples of {step} pixels{limit}", f"pass {fitting}"
        )


def check_targets(options: JobOptions, folder: Path) -> None:
    """Refuse names of layers that the denoiser's weights do not have, as far as headers tell.

    Args:
        options: The options.
        folder: A whole pipeline folder.

    Raises:
        OptionError: If no layer has one of the names.
    """
    from sharpening.checks import check_safetensors

    part = "unet" if (folder / "unet").is_dir() else "transformer"
    files = sorted((folder / part).glob("*.safetensors")) if options.lora_target_modules else []
    if not files:
        return
    layers = [name.removesuffix(".weight") for file in files for name in check_safetensors(file)]
    for target in options.lora_target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise OptionError(
                "lora_target_modules", f"no layer of the {part} has a name that ends in '{target}'",
                "pass names that it has, such as to_q, or leave it out",
            )  # fmt: skip


def check_vae_folder(options: ModelOptions, folder: Path) -> None:
    """Refuse a VAE in place of the pipeline's own that is absent, incomplete or does not fit.

    Args:
        options: The options.
        folder: A whole pipeline folder.

    Raises:
        OptionError: If it cannot take the place.
    """
    from sharpening import checks
    from sharpening.policies import check_vae

    name, value = "pretrained_vae_model_name_or_path", options.pretrained_vae_model_name_or_path
    if value is None or (vae := local_folder(name, value)) is None:
        return
    try:
        check_vae(folder, vae)
    except checks.ModelFolderError as error:
        raise OptionError(name, *reason_of(error)) from error


def check_tiny_vae(options: JobOptions) -> None:
    """Refuse a tiny VAE that is absent, incomplete or none; whether it fits the model shows when it is loaded."""
    from sharpening import checks

    name, value = "pretrained_tiny_vae_path", options.pretrained_tiny_vae_path
    if value is None or (folder := local_folder(name, value)) is None:
        return
    try:
        found = checks.read_json(folder / "config.json").get("_class_name")
        checks.check_weights(folder)
    except checks.ModelFolderError as error:
        raise OptionError(name, *reason_of(error)) from error
    if found != "AutoencoderTiny":
        raise OptionError(name, f"{folder} holds a {found}, no AutoencoderTiny", "pass one, such as TAESDXL's folder")


def check_guidance(folder: Path, scales: Mapping[str, float]) -> None:
    """Refuse guidance scales above 1, by option, where the model knows none."""
    from sharpening.policies import guidance_of

    if guidance_of(folder) == "none":
        for option, scale in scales.items():
            if scale > 1:
                raise OptionError(option, f"is {scale:g}, but guidance is distilled into this model", "pass 1")
