"""What must be there before a run may report to trackers or be pushed to the hub; checked before anything starts."""

import os
from importlib.util import find_spec
from pathlib import Path

from rayjobs.errors import OptionError
from rayjobs.options import JobOptions

LIBRARIES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy")}
"""Packages that a tracker needs."""
INSTALL = 'pip install "trajectory-sharpening[trackers]"'


def check_sharing(options: JobOptions) -> None:
    """Refuse trackers that are not installed, and an upload that could not happen.

    Args:
        options: The options.

    Raises:
        OptionError: For the first thing that is wrong.
    """  # noqa: DOC502
    check_trackers(options)
    check_hub(options)


def check_trackers(options: JobOptions) -> None:
    """Refuse trackers that are not installed.

    Args:
        options: The options.

    Raises:
        OptionError: If a package that one needs is absent.
    """
    for name in options.trackers:
        for package in LIBRARIES[name]:
            if find_spec(package) is None:
                needs = "" if package == name else f", which needs {package}"
                raise OptionError("report_to", f"{name}{needs}: the package is not installed here", INSTALL)


def check_hub(options: JobOptions) -> None:
    """Refuse an upload without a token, or to what can be no repository.

    Args:
        options: The options.

    Raises:
        OptionError: If the upload could not happen.
    """
    if not options.push_to_hub:
        if options.hub_model_id is not None:
            raise OptionError("hub_model_id", "nothing is uploaded", "pass --push_to_hub as well")
        return
    if not os.environ.get("HF_TOKEN"):
        raise OptionError(
            "push_to_hub", "needs a token with write access, and the environment has no HF_TOKEN", "export HF_TOKEN"
        )
    if options.hub_model_id is not None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(options.hub_model_id)
        except HFValidationError as error:
            said = str(error).split(": ")[0].rstrip(".")
            raise OptionError(
                "hub_model_id", f"'{options.hub_model_id}' is no repository: {said}", "pass owner/name"
            ) from error


def repository(options: JobOptions) -> str:
    """The repository that a run is uploaded to.

    Args:
        options: The run's options.

    Returns:
        `owner/name`, or a name alone, which the hub files under the token's owner.
    """
    return options.hub_model_id or Path(str(options.run_folder)).name
