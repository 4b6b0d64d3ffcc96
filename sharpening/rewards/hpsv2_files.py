"""HPSv2's checkpoint, told without torch."""

from __future__ import annotations

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.clip_files import architectures, check_checkpoint, check_model, own_weights
from sharpening.rewards.layouts import CHECKPOINT, local_weights

ARCHITECTURE = "ViT-H-14"
WEIGHTS = "xswu/HPSv2:HPS_v2.1_compressed.pt"


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse a checkpoint that is not there or another architecture's.

    Args:
        model: architecture, folder or hub id; None: ViT-H/14.
        checkpoint: file, folder or hub id; None: HPS v2.1 of the hub.

    Raises:
        RewardModelError: if a file is absent, truncated or another model's.
    """
    name = model or ARCHITECTURE
    config = check_model(name)
    if name in architectures():
        path = local_weights(checkpoint or WEIGHTS, CHECKPOINT)
        if path is not None:
            check_checkpoint(path, config)
    elif checkpoint is not None:
        raise RewardModelError(own_weights(name), CHECKPOINT)
