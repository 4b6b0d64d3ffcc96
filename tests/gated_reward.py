"""A reward that a test holds up: it scores no more images than a file says, so a run waits just where it should."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharpening.rewards.base import Scores


class GatedReward:
    """Scores an image by its brightness, once it may.

    Args:
        gate: File with the number of images that may be scored in all, beside which `.waits` appears once more are
            asked for; without the file all may.
        device: Ignored.
        batch_size: Ignored.
    """

    def __init__(self, gate: str = "", device: str = "cpu", batch_size: int = 32) -> None:
        self._gate, self._scored = Path(gate), 0

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images.

        Args:
            images: uint8 [N, H, W, 3].
            prompts: N prompts.

        Returns:
            Mean brightness in per cent.
        """
        if self._closed(len(images)):
            self._gate.with_suffix(".waits").touch()
        while self._closed(len(images)):
            time.sleep(0.05)
        self._scored += len(images)
        return Scores((images.mean(axis=(1, 2, 3), dtype=np.float64) / 2.55).astype(np.float32))

    def _closed(self, images: int) -> bool:
        return self._gate.is_file() and self._scored + images > int(self._gate.read_text())
