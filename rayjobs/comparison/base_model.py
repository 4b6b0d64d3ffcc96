"""The model that a search or a comparison starts from, checked before anything is started."""

from collections.abc import Mapping
from pathlib import Path

from rayjobs.comparison.tasks import Model
from rayjobs.model_checks import check_pipeline, model_folder
from rayjobs.options.model import ModelOptions
from rayjobs.runtime import models


def base_model(options: ModelOptions, scales: Mapping[str, float]) -> Model:
    """The model that the options name; what is on the hub is downloaded, and checked like a folder then.

    Args:
        options: The job's options.
        scales: Guidance scales that it is to draw at, by option.

    Returns:
        The model, as every node knows it.

    Raises:
        OptionError: If it is absent or incomplete, or cannot draw what is asked of it.
    """  # noqa: DOC502
    folder = model_folder(options)
    if folder is not None:
        check_pipeline(options, folder, scales)
    found = Model(models.pipeline(options), options.resolution, models.vae(options))
    here = options.model_copy(update={"pretrained_vae_model_name_or_path": found.vae})
    if folder is None or here != options:
        check_pipeline(here, Path(models.pipeline_folder(found.pipeline)), scales)
    return found
