"""The embedded world's verifiers are no models: nothing can be passed to them."""

from __future__ import annotations

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.clip_files import EMBEDDED
from sharpening.rewards.layouts import CHECKPOINT, MODEL


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse a model or checkpoint.

    Args:
        model: must be "embedded" or None.
        checkpoint: must be None.

    Raises:
        RewardModelError: if one is given.
    """
    for option, value in ((MODEL, None if model == EMBEDDED else model), (CHECKPOINT, checkpoint)):
        if value is not None:
            raise RewardModelError(f"the verifiers read no files, so not {value}; leave --{option} out", option)
