"""Commands that a run tells its user."""

import shlex

from rayjobs.runtime import checkpoints
from sharpening.evaluation.run_folder import RunFolder


def program(method: str) -> str:
    """The job's file that runs a method."""
    return f"{method}.py" if method in ("rlhf", "sft") else "finetune.py"


def resume_command(method: str, folder: RunFolder, address: str | None = None) -> str:
    """How to go on from a run's last checkpoint.

    Args:
        method: The run's method.
        folder: Its folder.
        address: Where it is copied to; `None` for a run that only has its folder.

    Returns:
        The command; empty when there is no checkpoint.
    """
    found = checkpoints.listed(folder.checkpoints)
    if not found:
        return ""
    config = shlex.quote(str(folder.path / "config.json"))
    command = f"python rayjobs/{program(method)} --config {config}"
    if address is not None:
        command += f" --output_dir {shlex.quote(address)} --local_dir {shlex.quote(str(folder.path))}"
    return f"{command} --resume_from_checkpoint {shlex.quote(str(found[-1]))}"


def report_command(folder: RunFolder) -> str:
    """How to make a run's page."""
    return f"python rayjobs/report.py {shlex.quote(str(folder.path))}"
