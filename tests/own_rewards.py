"""Rewards of a user's own, as `--reward tests.own_rewards:Patchy` names them; scores are functions of the pixels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from sharpening.rewards.base import Scores


class Brightness:
    """Mean brightness of one channel, in per cent."""

    def __init__(self, channel: int = 0, **common: object) -> None:
        del common  # device and batch size, which every scorer is given
        self._channel = channel

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        values = images[..., self._channel].mean(axis=(1, 2), dtype=np.float64) / 2.55
        return Scores(values.astype(np.float32))


class Patchy(Brightness):
    """The same, but not a number for one image in `one_in`, which ones their bytes decide."""

    def __init__(self, one_in: int = 20, **common: object) -> None:
        super().__init__()
        self._one_in = one_in

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        scores = super().__call__(images, prompts)
        missing = [zlib.crc32(np.ascontiguousarray(image).tobytes()) % self._one_in == 0 for image in images]
        return Scores(np.where(missing, np.nan, scores.values).astype(np.float32))
