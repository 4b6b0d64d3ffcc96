"""IterComp's three checkpoints: how they are named, and whether they are there; imports no torch."""

from __future__ import annotations

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.image_reward_files import blip_sizes
from sharpening.rewards.layouts import CHECKPOINT, MODEL, file_shapes, local_weights

REPOSITORY = "comin/IterComp:reward_models"
WANTED = {"attribute": "attribute", "spatial": "^(?!.*non).*spatial", "non_spatial": "non.*spatial"}
"""What the name of each aspect's file looks like."""


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse checkpoints that are not there or another model's.

    Args:
        model: folder or hub id with all three; None: the published one.
        checkpoint: the three of them, with commas between; None: the model's.

    Raises:
        RewardModelError: if a file is absent, truncated or another model's.
    """  # noqa: DOC502
    for aspect, (value, option) in places(model or REPOSITORY, checkpoint).items():
        path = local_weights(value, option, *look_for(aspect, checkpoint))
        found = file_shapes(path, option) if path is not None else None
        if path is not None and found is not None:
            blip_sizes(path, found, option)


def places(model: str, checkpoint: str | None) -> dict[str, tuple[str, str]]:
    """Where each aspect's checkpoint is.

    Args:
        model: folder or hub id with all three.
        checkpoint: the three of them, with commas between; None: the model's.

    Returns:
        File, folder or hub id and the option that says so, by aspect.

    Raises:
        RewardModelError: if there are not three.
    """
    if checkpoint is None:
        return dict.fromkeys(WANTED, (model, MODEL))
    values = [value.strip() for value in checkpoint.split(",")]
    if len(values) != len(WANTED) or not all(values):
        raise RewardModelError(
            f"'{checkpoint}' names {len(values)} checkpoints; pass three as --{CHECKPOINT}, with commas between: "
            f"{', '.join(WANTED)}",
            CHECKPOINT,
        )
    return {aspect: (value, CHECKPOINT) for aspect, value in zip(WANTED, values, strict=True)}


def look_for(aspect: str, checkpoint: str | None) -> tuple[str, str]:
    """What an aspect's file must be called, as a regular expression and in words; anything where it was named."""
    return (WANTED[aspect], f"'{aspect}'") if checkpoint is None else ("", "")
