"""The files of the embedded world's reward heads, told without torch."""

from __future__ import annotations

from pathlib import Path

from sharpening.checks import ModelFolderError, check_weights, read_json
from sharpening.rewards.base import RewardModelError
from sharpening.rewards.clip_files import EMBEDDED
from sharpening.rewards.layouts import CHECKPOINT


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse heads that are not there.

    Args:
        model: "embedded" or None, or a folder that `python -m sharpening.shapes.train heads` wrote.
        checkpoint: must be None.

    Raises:
        RewardModelError: if a file is absent or truncated.
    """
    if checkpoint is not None:
        raise RewardModelError(f"the embedded rewards take no checkpoint; leave --{CHECKPOINT} out", CHECKPOINT)
    if model in (None, EMBEDDED):
        return
    folder = Path(str(model)).expanduser()
    try:
        read_json(folder / "config.json")
        check_weights(folder)
    except ModelFolderError as error:
        raise RewardModelError(str(error)) from error
