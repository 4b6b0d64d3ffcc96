"""What a reward is: one callable from images and their prompts to scores, wherever the scorer runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

FailureReason = Literal["timeout", "unavailable", "rejected", "unreadable answer", "not finite"]
"""Why an image has no score."""


@dataclass(frozen=True)
class Scores:
    """Scores of N images.

    Attributes:
        values: float32 `[N]`, in the reward's own unit (the CLIP score is cosine × 100). Entries of failed images mean
            nothing and are never read.
        failures: reason for each image that has no score, by its index.
    """

    values: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)


def all_failed(count: int, reason: FailureReason) -> Scores:
    """Scores of images none of which has one.

    Args:
        count: N.
        reason: why.

    Returns:
        NaN and the failure for each.
    """
    return Scores(np.full(count, np.nan, np.float32), dict.fromkeys(range(count), reason))


ScoreFn = Callable[[np.ndarray, Sequence[str]], Scores]
"""`score(images uint8 [N, H, W, 3], prompts [N]) -> Scores` of the same N."""


class RewardUnavailable(Exception):
    """The reward as a whole stays down: no image can be scored, and retrying was given up."""
