"""Rewards that need no model, for tests that serve several."""

from collections.abc import Sequence

import numpy as np

from sharpening.rewards import Scores
from sharpening.rewards.requests import check_request


class Red:
    """A third of the red channel's mean: float32s that are not round."""

    def __init__(self, device: str = "cpu", batch_size: int = 32) -> None:
        del device, batch_size

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        check_request(images, prompts)
        return Scores((images[..., 0].mean(axis=(1, 2)) / 3).astype(np.float32))
