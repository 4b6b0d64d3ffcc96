"""How the scores of several rewards become one: a weighted sum of standardised scores, or a weighted mean of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from sharpening.rewards.statistics import Moments, of_row

Combine = Literal["sum", "ranks"]
FEW = 2  # scores that a deviation can be taken of


@dataclass(frozen=True)
class Mix:
    """Weights of rewards and the way to combine them. A single reward is not brought to any scale: `weight · score`.

    Attributes:
        weights: by the reward's name.
        combine: "sum": `Σ w z`, z being scores in standard deviations from their mean; "ranks": `Σ w r / Σ |w|`, r
            being the rank 0 … 1 among the images of the same prompt.
    """

    weights: Mapping[str, float]
    combine: Combine = "sum"

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards, in their order."""
        return tuple(self.weights)

    @property
    def alone(self) -> bool:
        """Whether there is one reward only."""
        return len(self.weights) == 1

    def of_call(
        self,
        scores: Mapping[str, Float[np.ndarray, " image"]],
        prompts: Sequence[str],
        statistics: Mapping[str, Moments],
    ) -> Float[np.ndarray, " image"]:
        """Combine what the rewards say about the images of one call.

        Args:
            scores: of N images by each reward; NaN where there is none.
            prompts: N prompts.
            statistics: what scores are standardised by; a reward with fewer than two scores in them is standardised
                by this call's own. Ranks need none.

        Returns:
            float64, NaN where a reward has no score.
        """
        if self.alone or self.combine == "sum":
            return self.on_scale(scores, {name: _known(statistics.get(name), scores[name]) for name in self.weights})
        whole = np.isfinite(np.stack([scores[name] for name in self.weights])).all(axis=0)
        return self._mean({name: ranks_by_prompt(scores[name], prompts, whole) for name in self.weights})

    def of_sample(
        self, scores: Mapping[str, ArrayLike], sample: Mapping[str, Float[np.ndarray, " image"]]
    ) -> np.ndarray:
        """Combine scores on a scale that is the same for all calls: beside a fixed sample of images.

        Args:
            scores: by each reward, of one shape.
            sample: each reward's scores of the sample's images.

        Returns:
            float64 of that shape. Ranks are shares of the sample that score less, with half of those that score alike.
        """
        if self.alone or self.combine == "sum":
            return self.on_scale(scores, {name: Moments.of(sample[name]) for name in self.weights})
        return self._mean({name: share_below(scores[name], sample[name]) for name in self.weights})

    def on_scale(self, scores: Mapping[str, ArrayLike], statistics: Mapping[str, Moments]) -> np.ndarray:
        """Combine scores standardised by given statistics, which makes different images comparable.

        Args:
            scores: by each reward, of one shape.
            statistics: of each reward.

        Returns:
            float64 of that shape: `Σ w z`, and where ranks are combined, as single images have none, `Σ w z / Σ |w|`.
        """
        if self.alone:
            ((name, weight),) = self.weights.items()
            return weight * np.asarray(scores[name], dtype=np.float64)
        z = {name: statistics[name].standardise(scores[name]) for name in self.weights}
        return self._mean(z) if self.combine == "ranks" else self._sum(z)

    def level(self, row: Mapping[str, Any], first: Mapping[str, Any]) -> float | None:
        """Where the rewards stand after some updates, on the scale of the first one.

        The combined reward that a method learns from is no curve to look at: running statistics follow the scores, so
        it falls back to 0 when they stop rising, and mean ranks never change.

        Args:
            row: an update's metrics.
            first: those of the first update.

        Returns:
            The combination of the mean scores, in standard deviations of the first update's scores; `None` where a
            reward scored nothing.
        """
        now, then = of_row(row, self.weights), of_row(first, self.weights)
        if len(now) < len(self.weights) or len(then) < len(self.weights):
            return None
        return float(self.on_scale({name: moments.mean for name, moments in now.items()}, then))

    def _sum(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        total = np.zeros(np.shape(next(iter(values.values()))))
        for name, weight in self.weights.items():
            total = total + weight * values[name]
        return total

    def _mean(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._sum(values) / sum(abs(weight) for weight in self.weights.values())


def ranks_by_prompt(
    scores: Float[np.ndarray, " image"], prompts: Sequence[str], ranked: np.ndarray
) -> Float[np.ndarray, " image"]:
    """Rank of each image among those of the same prompt.

    Args:
        scores: of N images.
        prompts: their prompts.
        ranked: bool `[N]`, which images take part.

    Returns:
        From 0, the worst, to 1, the best; images that score alike share the mean of their ranks, the only image of a
        prompt has 0.5, and what does not take part NaN.
    """
    from scipy.stats import rankdata

    ranks = np.full(len(scores), np.nan)
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        if ranked[place]:
            places.setdefault(prompt, []).append(place)
    for own in places.values():
        ranks[own] = (rankdata(scores[own]) - 1) / (len(own) - 1) if len(own) > 1 else 0.5
    return ranks


def share_below(scores: ArrayLike, sample: Float[np.ndarray, " image"]) -> np.ndarray:
    """Share of a sample that scores less, with half of those that score alike.

    Args:
        scores: of any shape.
        sample: finite scores, at least one.

    Returns:
        float64 of that shape, 0 to 1, NaN where a score is.
    """
    values, ordered = np.asarray(scores, dtype=np.float64), np.sort(np.asarray(sample, dtype=np.float64))
    less, most = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.where(np.isnan(values), np.nan, (less + most) / (2 * len(ordered)))


def _known(statistics: Moments | None, scores: np.ndarray) -> Moments:
    return statistics if statistics is not None and statistics.count >= FEW else Moments.of(scores)
