"""Means with intervals over seeds and prompts at once, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import stdtrit

from sharpening.evaluation.statistics import CONFIDENCE, Interval, interval

MIN_SEEDS = 3
"""With fewer seeds nothing is called better or worse: the spread between training runs is unknown."""

Word = Literal["above", "below", "not told apart", "undecided"]


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over seeds and prompts with its 95 % interval.

    Attributes:
        seeds: seeds that went in.
        prompts: prompts that went in.
    """

    seeds: int
    prompts: int

    @property
    def half(self) -> float:
        """Half the interval's width; the interval is symmetric."""
        return (self.high - self.low) / 2

    @property
    def word(self) -> Word:
        """What a difference shows: `undecided` with too few seeds, else where its interval lies relative to zero."""
        if self.seeds < MIN_SEEDS:
            return "undecided"
        if not self.excludes_zero:
            return "not told apart"
        return "above" if self.mean > 0 else "below"

    def as_dict(self) -> dict[str, Any]:
        """Mean, ends, seeds and prompts by name."""
        return {name: getattr(self, name) for name in ("mean", "low", "high", "seeds", "prompts")}


def crossed_interval(values: Float[np.ndarray, "seed prompt"]) -> Estimate:
    """Interval of the mean of a population of seeds and a population of prompts.

    Every seed answers every prompt, so values are `y_sp = μ + a_s + b_p + e_sp` (two crossed random effects: a
    training run may be lucky, a prompt may be hard). The variance of the grand mean is
    `σ_a²/S + σ_b²/P + σ_e²/SP`, whose unbiased estimate is `V_a + V_b − V_e` with `V_a` the variance of the seeds'
    means over S, `V_b` that of the prompts' means over P, and `V_e` the residual mean square over SP; it is not let
    fall below `V_a` or `V_b`. Student's t quantile has Satterthwaite's degrees of freedom,
    `V² / (V_a²/(S−1) + V_b²/(P−1) + V_e²/((S−1)(P−1)))`: near S − 1 where runs differ most, near P − 1 where
    prompts do. Simulated with three seeds, such intervals hold the truth in 93 to 98 cases of 100, whichever of the
    three spreads prevails. A two-level bootstrap takes the seeds' variance for (S−1)/S of what it is and knows no t
    quantile: where runs differ its 95 % intervals held the truth in 72 to 87 cases of 100.

    Args:
        values: a value a seed and prompt, all finite.

    Returns:
        Mean and interval. With one seed it is the t interval over prompts, which leaves out that runs differ.

    Raises:
        ValueError: if there is no seed, fewer than two prompts, or a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"an interval needs a seed and two prompts at least, got shape {values.shape}")
    seeds, prompts = values.shape
    if seeds == 1:
        one = interval(values[0])
        return Estimate(one.mean, one.low, one.high, 1, prompts)
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    mean = float(values.mean())
    by_seed, by_prompt = values.mean(axis=1), values.mean(axis=0)
    residual = values - by_seed[:, None] - by_prompt[None, :] + mean
    freedom = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)])
    parts = np.array([
        by_seed.var(ddof=1) / seeds, by_prompt.var(ddof=1) / prompts, (residual**2).sum() / freedom[2] / values.size
    ])  # fmt: skip
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    if variance <= 0:
        return Estimate(mean, mean, mean, seeds, prompts)
    degrees = variance**2 / (parts**2 / freedom).sum()
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2) * variance**0.5)
    return Estimate(mean, mean - half, mean + half, seeds, prompts)


def estimate(scores: pd.DataFrame) -> Estimate | None:
    """Interval of a table of scores.

    Args:
        scores: seeds down, prompts across; NaN where an image has no score. Seeds without any score are left out,
            then prompts that lack one of a seed.

    Returns:
        Mean and interval; `None` where fewer than two prompts remain.
    """
    values = scores.to_numpy(dtype=np.float64)
    values = values[~np.isnan(values).all(axis=1)]
    values = values[:, ~np.isnan(values).any(axis=0)]
    if values.shape[0] < 1 or values.shape[1] < 2:
        return None
    return crossed_interval(values)


def difference(scores: pd.DataFrame, base: pd.DataFrame) -> Estimate | None:
    """Interval of the mean difference between pairs of images of the same prompt and noise seed.

    Args:
        scores: seeds down, prompts across.
        base: what is subtracted; paired by seed and prompt.

    Returns:
        Mean difference and interval; `None` where the two have fewer than two prompts in common.
    """
    return estimate(scores - base)
