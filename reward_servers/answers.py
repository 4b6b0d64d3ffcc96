"""What a reward answered, made into scores, or into the reason why there are none. Needs no Ray."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from sharpening.rewards.base import Scores, all_failed

logger = logging.getLogger(__name__)


def readable(answer: Any, count: int, name: str) -> Scores:
    """Scores out of what a reward answered.

    Args:
        answer: what came back.
        count: images that were sent.
        name: of the reward, for the log.

    Returns:
        The answer, if it has a score or a failure for every image; otherwise "unreadable answer" for all of them.
    """
    if isinstance(answer, Scores) and np.shape(answer.values) == (count,):
        missing = np.flatnonzero(~np.isfinite(answer.values))
        return Scores(answer.values, {**{int(i): "not finite" for i in missing}, **answer.failures})
    logger.warning("reward '%s' gave an unreadable answer for %d images", name, count)
    return all_failed(count, "unreadable answer")
