"""Running statistics of rewards: a pure function of a run's metrics, so that a resumed run has the same ones.

An update's row holds how many images each reward scored in its rollouts, their mean and their standard deviation. What
rollouts with the weights of version v are standardised by is merged from the rows of the updates before v: it depends
neither on who rolled them out nor on whether the run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sharpening.rewards.terms import reward_column

ROUNDING = float(np.finfo(np.float32).eps)  # scores are float32: what differs by less, relatively, does not differ


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a reward's scores.

    Attributes:
        count: scores.
        mean: their mean, in the reward's unit.
        m2: Σ (score − mean)².
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike) -> Moments:
        """Moments of scores.

        Args:
            values: any number of them; those that are not finite are left out.

        Returns:
            Their moments, in float64.
        """
        numbers = np.asarray(values, dtype=np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return cls()
        mean = float(numbers.mean())
        return cls(len(numbers), mean, float(((numbers - mean) ** 2).sum()))

    def merged(self, other: Moments) -> Moments:
        """Moments of two sets together (Chan, Golub and LeVeque 1979, Eq. 2.1).

        Args:
            other: the second set.

        Returns:
            Exactly the one if the other is empty.
        """
        if not self.count or not other.count:
            return self if self.count else other
        count, delta = self.count + other.count, other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        return Moments(count, mean, self.m2 + other.m2 + delta * delta * (self.count * other.count / count))

    @property
    def std(self) -> float:
        """Standard deviation `√(m2 / count)`, 0 of nothing."""
        return math.sqrt(self.m2 / self.count) if self.count else 0.0

    def standardise(self, values: ArrayLike) -> np.ndarray:
        """`(value − mean) / std`, in float64.

        Args:
            values: scores of any shape.

        Returns:
            Of that shape. A reward whose scores were all the same, up to float32's rounding, has nothing to be divided
            by: its deviations from the mean stay in the reward's unit.
        """
        std = self.std if self.std > ROUNDING * abs(self.mean) else 1.0
        return (np.asarray(values, dtype=np.float64) - self.mean) / std


Statistics = dict[str, Moments]
"""Moments of each reward, by its name."""


def merge(parts: Iterable[Mapping[str, Moments]]) -> Statistics:
    """Statistics of several sets of images together.

    Args:
        parts: statistics of each, in an order that is always the same: sums of floats depend on it.

    Returns:
        Moments of every reward that occurs.
    """
    merged: Statistics = {}
    for part in parts:
        for name, moments in part.items():
            merged[name] = merged.get(name, Moments()).merged(moments)
    return merged


def columns(statistics: Mapping[str, Moments]) -> dict[str, float]:
    """An update's statistics as columns of its metrics row.

    Args:
        statistics: of all images that its rollouts had scored.

    Returns:
        `reward_<name>_count`, `_mean` and `_std` of each reward that scored any.
    """
    row: dict[str, float] = {}
    for name, moments in statistics.items():
        if moments.count:
            stem = reward_column(name)
            row |= {f"{stem}_count": moments.count, f"{stem}_mean": moments.mean, f"{stem}_std": moments.std}
    return row


def of_row(row: Mapping[str, Any], names: Iterable[str]) -> Statistics:
    """What `columns` wrote, read back.

    Args:
        row: a metrics row.
        names: the rewards.

    Returns:
        Moments of those that the row knows.
    """
    found: Statistics = {}
    for name in names:
        stem = reward_column(name)
        if row.get(f"{stem}_count"):
            count = int(row[f"{stem}_count"])
            found[name] = Moments(count, row[f"{stem}_mean"], row[f"{stem}_std"] ** 2 * count)
    return found


def before(rows: Sequence[Mapping[str, Any]], version: int, names: Sequence[str]) -> Statistics:
    """What rollouts with some version of the weights are standardised by.

    Args:
        rows: metrics, a row an update, in order.
        version: updates that the weights have had.
        names: the rewards.

    Returns:
        Statistics of all updates before; empty for version 0.
    """
    return merge(of_row(row, names) for row in rows if row["update"] < version)
