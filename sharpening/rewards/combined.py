"""Several rewards as one: asked at the same time, combined, and a failure of any is a failure of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from sharpening.rewards import load_reward
from sharpening.rewards.base import ScoreFn, Scores, blamed
from sharpening.rewards.mix import Combine, Mix
from sharpening.rewards.statistics import Moments, Statistics, merge
from sharpening.rewards.terms import parse_terms


class Panel:
    """Rewards that are asked about the same images at the same time, each in a thread of its own.

    Attributes:
        scorers: the rewards by name.
    """

    def __init__(self, scorers: Mapping[str, ScoreFn]) -> None:
        """Remember whom to ask.

        Args:
            scorers: the rewards by name.
        """
        self.scorers = dict(scorers)
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> dict[str, Scores]:
        """Ask all of them, and wait for all of them.

        Args:
            images: uint8 `[N, H, W, 3]`.
            prompts: N prompts.

        Returns:
            What each answered, by name; images without a finite score are among its failures.

        Raises:
            RewardUnavailable: if one of them stays down.
            ValueError: if one of them answers for another number of images.
        """  # noqa: DOC502
        if len(self.scorers) < 2:
            return {name: _checked(name, score(images, prompts), len(images)) for name, score in self.scorers.items()}
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self.scorers), thread_name_prefix="reward")
        asked = {name: self._threads.submit(score, images, prompts) for name, score in self.scorers.items()}
        wait(asked.values())
        return {name: _checked(name, future.result(), len(images)) for name, future in asked.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"scorers": self.scorers, "_threads": None}


class CombinedScore:
    """A `ScoreFn` over several rewards.

    What scores are standardised by is decided before a call and never changes with it: `scaled_by` and `beside` give
    combinations on another scale, which share the rewards. Without either, each call is standardised by itself.

    Attributes:
        mix: weights, and the way to combine.
        seen: what each reward said so far: its statistics over all images that it could score.
    """

    def __init__(
        self,
        parts: Mapping[str, ScoreFn],
        mix: Mix,
        statistics: Mapping[str, Moments] | None = None,
        sample: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Combine rewards.

        Args:
            parts: the rewards by name.
            mix: their weights, by the same names.
            statistics: what their scores are standardised by.
            sample: scores of a fixed sample of images by each reward, as the scale of all calls.

        Raises:
            ValueError: if the names differ.
        """
        if set(parts) != set(mix.names):
            raise ValueError(f"weights of {', '.join(mix.names)} do not fit the rewards {', '.join(parts)}")
        self.mix = mix
        self.seen: Statistics = {}
        self._panel = Panel(parts)
        self._statistics, self._sample = dict(statistics or {}), sample

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`.
            prompts: N prompts.

        Returns:
            The combination, and each reward's own scores as `parts`. An image that any reward could not score has
            failed; its reason begins with the first such reward's name.

        Raises:
            RewardUnavailable: if one of the rewards stays down.
            ValueError: if one of them answers for another number of images.
        """  # noqa: DOC502
        answers = self._panel(images, prompts)
        parts = {name: answers[name].values for name in self.mix.names}
        self.seen = merge([self.seen, {name: Moments.of(values) for name, values in parts.items()}])
        failures: dict[int, str] = {}
        for name in self.mix.names:
            for image, reason in answers[name].failures.items():
                failures.setdefault(image, blamed(name, reason))
        if self._sample is not None:
            values = self.mix.of_sample(parts, self._sample)
        else:
            values = self.mix.of_call(parts, prompts, self._statistics)
        return Scores(values.astype(np.float32), dict(sorted(failures.items())), parts)

    def scaled_by(self, statistics: Mapping[str, Moments]) -> CombinedScore:
        """The same rewards, standardised by other statistics; nothing seen yet.

        Args:
            statistics: by the reward's name; empty: each call is standardised by itself.

        Returns:
            A combination that shares the rewards.
        """
        return self._with(dict(statistics), None)

    def beside(self, sample: Mapping[str, np.ndarray]) -> CombinedScore:
        """The same rewards on a scale that is the same for all calls; nothing seen yet.

        Args:
            sample: each reward's scores of a fixed sample of images.

        Returns:
            A combination that shares the rewards.
        """
        return self._with({}, sample)

    def _with(self, statistics: Statistics, sample: Mapping[str, np.ndarray] | None) -> CombinedScore:
        other = CombinedScore(self._panel.scorers, self.mix, statistics, sample)
        other._panel = self._panel  # with its threads
        return other


def mix_of(score: ScoreFn) -> Mix | None:
    """How a reward is mixed, `None` where it is a single one."""
    return score.mix if isinstance(score, CombinedScore) else None


def scaled(score: ScoreFn, statistics: Mapping[str, Moments]) -> ScoreFn:
    """A reward for one rollout task: a combination on the given scale, which keeps count; a single one as it is."""
    return score.scaled_by(statistics) if isinstance(score, CombinedScore) else score


def seen_by(score: ScoreFn) -> Statistics:
    """What the rewards of a combination said so far; of a single reward nothing is kept."""
    return score.seen if isinstance(score, CombinedScore) else {}


def load_rewards(
    text: str, combine: Combine = "sum", options: Mapping[str, Mapping[str, Any]] | None = None, **common: Any
) -> ScoreFn:
    """Make rewards in this process.

    Args:
        text: such as "clip:1.0,embedded-aesthetic:0.2"; see `parse_terms`.
        combine: how several become one.
        options: keyword arguments of each scorer's class, by the reward's name.
        **common: keyword arguments of all of them, such as `device`.

    Returns:
        The scorer itself where there is one of weight 1, else a `CombinedScore`.

    Raises:
        ValueError: if the list cannot be read, or a scorer cannot be made.
    """  # noqa: DOC502
    terms = parse_terms(text)
    own = options or {}
    parts = {term.name: load_reward(term.reward, **common | dict(own.get(term.name, {}))) for term in terms}
    return combined(parts, Mix({term.name: term.weight for term in terms}, combine))


def combined(parts: Mapping[str, ScoreFn], mix: Mix) -> ScoreFn:
    """One reward out of several.

    Args:
        parts: the rewards by name.
        mix: how they are combined.

    Returns:
        The reward itself where there is one of weight 1, else a `CombinedScore`.
    """
    if mix.alone and next(iter(mix.weights.values())) == 1:
        return next(iter(parts.values()))
    return CombinedScore(parts, mix)


def _checked(name: str, scores: Scores, images: int) -> Scores:
    """A reward's answer with every score that is not finite among the failures, as NaN."""
    values = np.array(scores.values, dtype=np.float32)
    if values.shape != (images,):
        raise ValueError(f"the reward '{name}' answered with shape {values.shape} for {images} images")
    failures = {int(i): "not finite" for i in np.flatnonzero(~np.isfinite(values))} | dict(scores.failures)
    values[list(failures)] = np.nan
    return Scores(values, failures, scores.parts)
