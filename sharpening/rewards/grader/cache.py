"""Scores that are known, so that a task that is made again costs nothing and has the same scores."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np


class ScoreCache:
    """Scores by image and prompt; those asked for least lately are forgotten first."""

    def __init__(self, size: int) -> None:
        """Start empty.

        Args:
            size: scores to keep.
        """
        self._size = size
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def get(self, key: bytes) -> float | None:
        """The score of `key_of` an image and prompt; `None` where it is not known."""
        if key in self._scores:
            self._scores.move_to_end(key)
        return self._scores.get(key)

    def put(self, key: bytes, score: float) -> None:
        """Keep a score.

        Args:
            key: `key_of` its image and prompt.
            score: the score.
        """
        self._scores[key] = score
        self._scores.move_to_end(key)
        if len(self._scores) > self._size:
            self._scores.popitem(last=False)


def key_of(image: np.ndarray, prompt: str) -> bytes:
    """What tells one pair of image and prompt from all others.

    Args:
        image: uint8 `[H, W, 3]`.
        prompt: its prompt.

    Returns:
        A hash of shape, pixels and prompt.
    """
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.tobytes())
    digest.update(prompt.encode("utf-8", "surrogatepass"))
    return digest.digest()
