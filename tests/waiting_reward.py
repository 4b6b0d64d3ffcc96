"""A reward that takes its time without taking a core, as a remote service does: for measuring what waits for what."""

import time
from collections.abc import Sequence

import numpy as np

from sharpening.rewards.base import Scores


class WaitingReward:
    """Scores an image by its brightness, and waits for each.

    Args:
        seconds_per_image: How long.
        device: Ignored.
        batch_size: Ignored.
    """

    def __init__(self, seconds_per_image: float = 0.25, device: str = "cpu", batch_size: int = 32) -> None:
        self._seconds = seconds_per_image

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images.

        Args:
            images: uint8 [N, H, W, 3].
            prompts: N prompts.

        Returns:
            Mean brightness in per cent.
        """
        time.sleep(self._seconds * len(images))
        return Scores((images.mean(axis=(1, 2, 3), dtype=np.float64) / 2.55).astype(np.float32))
