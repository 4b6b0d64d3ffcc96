"""Means with intervals, and paired comparisons: the same prompts and seeds before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds the true one with 95 % confidence.

    Attributes:
        mean: the mean.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """One metric before and after, on the same prompts.

    Attributes:
        before: mean over prompts before training.
        after: mean over prompts after training.
        difference: mean of the prompts' own differences, after minus before.
        prompts: prompts compared.
    """

    before: Interval
    after: Interval
    difference: Interval
    prompts: int

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The three intervals as `{before,after,difference}.{mean,low,high}`."""
        return {name: asdict(getattr(self, name)) for name in ("before", "after", "difference")}


def interval(values: ArrayLike) -> Interval:
    """Student's t interval of a mean.

    Args:
        values: `[N]` numbers, at least two, all finite.

    Returns:
        `mean ± t(0.975, N − 1) · s / √N` with the sample standard deviation `s`.

    Raises:
        ValueError: if there are fewer than two numbers, or one is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise ValueError(f"an interval needs a row of at least two numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} numbers are not finite")
    from scipy.special import stdtrit  # an eighth of what a coordinator imports, which has no interval to compute

    mean = float(numbers.mean())
    spread = float(numbers.std(ddof=1)) / len(numbers) ** 0.5
    half = float(stdtrit(len(numbers) - 1, (1 + CONFIDENCE) / 2)) * spread
    return Interval(mean, mean - half, mean + half)


def compare(before: ArrayLike, after: ArrayLike) -> Comparison:
    """Compare a metric on the same prompts.

    Pairing removes what prompts differ in among themselves, which is most of the variance.

    Args:
        before: `[N]` values, one a prompt.
        after: `[N]` values of the same prompts in the same order.

    Returns:
        Both means and the mean difference, each with its interval.

    Raises:
        ValueError: if the two differ in length.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must be equally many, got {first.shape} and {second.shape}")
    return Comparison(interval(first), interval(second), interval(second - first), len(first))


def reward_statistics(path_rewards: ArrayLike) -> dict[str, float]:
    """What Figure 6 follows: the level of the rewards and their spread over branches.

    Args:
        path_rewards: `[..., n]`, path rewards of the n branches of each prompt and timestep.

    Returns:
        `reward_mean`, and over the branches of a prompt `reward_std`, `reward_best` and `reward_worst`, each a mean
        over the leading axes, in the reward's unit.
    """
    rewards = np.asarray(path_rewards, dtype=np.float64)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(axis=-1).mean()),
        "reward_best": float(rewards.max(axis=-1).mean()),
        "reward_worst": float(rewards.min(axis=-1).mean()),
    }
