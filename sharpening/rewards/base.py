"""What a reward is: one callable from images and their prompts to scores, wherever the scorer runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sharpening.checks import ModelFolderError

FailureReason = Literal["timeout", "unavailable", "rejected", "unreadable answer", "not finite"]
"""Why an image has no score."""


@dataclass(frozen=True)
class Scores:
    """Scores of N images.

    Attributes:
        values: float32 `[N]`, in the reward's own unit (the CLIP score is cosine × 100). Entries of failed images mean
            nothing and are never read.
        failures: reason for each image that has no score, by its index; where several rewards were asked, behind the
            name of the one that failed (`blamed`).
        parts: scores of the same images by each of several rewards, float32 `[N]` by its name, in its own unit and NaN
            where it has none; empty where one reward was asked.
    """

    values: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)
    parts: dict[str, np.ndarray] = field(default_factory=dict)


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


def blamed(reward: str, reason: str) -> str:
    """A failure's reason behind the name of the reward that failed.

    Args:
        reward: the reward's name.
        reason: a `FailureReason`.

    Returns:
        Such as `aesthetic: not finite`.
    """
    return f"{reward}: {reason}"


class RewardUnavailable(Exception):
    """The reward as a whole stays down: no image can be scored, and retrying was given up."""


class RewardMisconfigured(RewardUnavailable):
    """It will stay down until somebody mends it: a key is missing, a model has another name. Retrying is of no use."""


class RewardModelError(ModelFolderError):
    """A reward's model is missing, damaged or of another kind; the message names the file and what to do.

    Attributes:
        option: the option that names the model, `reward_model` or `reward_checkpoint`.
    """

    def __init__(self, message: str, option: str = "reward_model") -> None:
        """Make the error.

        Args:
            message: one sentence: what is wrong; what to do.
            option: the option that names the model.
        """
        super().__init__(message)
        self.option = option
