"""What a reward does, for Prometheus through Ray's own exporter: `ray_sharpening_reward_*`, tagged by reward."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence

import numpy as np
from ray.serve.metrics import Counter, Gauge, Histogram

from sharpening.rewards import Scores

PREFIX = "sharpening_reward"
BATCH_IMAGES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
LATENCY_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300]
RECENT = 1024
"""Scores that mean and spread are taken over."""


class RewardMetrics:
    """Metrics of one replica. Everything is recorded once a batch, in the scorer's thread."""

    def __init__(self, reward: str) -> None:
        """Register the metrics.

        Args:
            reward: value of the tag `reward`.
        """
        tags = ("reward",)
        self.failures = failure_counter(reward)
        self._requests = Counter(f"{PREFIX}_requests", "requests answered", tags)
        self._images = Counter(f"{PREFIX}_images", "images scored", tags)
        self._batch = Histogram(f"{PREFIX}_batch_images", "images scored together", BATCH_IMAGES, tags)
        self._latency = Histogram(
            f"{PREFIX}_latency_s", "seconds from a request's arrival to its answer", LATENCY_S, tags
        )
        self._mean = Gauge(f"{PREFIX}_score_mean", f"mean of the last {RECENT} scores, in the reward's unit", tags)
        self._spread = Gauge(f"{PREFIX}_score_spread", f"standard deviation of the last {RECENT} scores", tags)
        for metric in (self._requests, self._images, self._batch, self._latency, self._mean, self._spread):
            metric.set_default_tags({"reward": reward})
        self._recent = np.zeros(RECENT, np.float64)
        self._seen = 0

    def batch(self, counts: Sequence[int], answers: Sequence[Scores | Exception]) -> None:
        """Count what was scored together.

        Args:
            counts: images of each request.
            answers: each request's scores, or what the scorer raised for it.
        """
        self._requests.inc(len(counts))
        if images := sum(counts):
            self._images.inc(images)
            self._batch.observe(images)
        for kind, number in failures_by_kind(counts, answers).items():
            self.failures.inc(number, {"kind": kind})
        self._distribution([answer for answer in answers if isinstance(answer, Scores)])

    def latency(self, seconds: float) -> None:
        """Record how long a request took.

        Args:
            seconds: from its arrival to its answer.
        """
        self._latency.observe(seconds)

    def _distribution(self, answers: Sequence[Scores]) -> None:
        values = [value for answer in answers for value in scored(answer)][-RECENT:]
        if not values:
            return
        self._recent[(self._seen + np.arange(len(values))) % RECENT] = values
        self._seen += len(values)
        recent = self._recent[: min(self._seen, RECENT)]
        self._mean.set(float(recent.mean()))
        self._spread.set(float(recent.std()))


def scored(answer: Scores) -> list[float]:
    """The scores of those images that have one.

    Args:
        answer: scores of a request.

    Returns:
        Numbers, in order.
    """
    values: list[float] = answer.values.tolist()
    return [value for i, value in enumerate(values) if i not in answer.failures] if answer.failures else values


def failure_counter(reward: str) -> Counter:
    """The counter of images without a score.

    Args:
        reward: value of the tag `reward`.

    Returns:
        A counter whose tag `kind` says why.
    """
    counter = Counter(f"{PREFIX}_failures", "images that got no score, by reason", ("reward", "kind"))
    counter.set_default_tags({"reward": reward})
    return counter


def failures_by_kind(counts: Sequence[int], answers: Sequence[Scores | Exception]) -> dict[str, int]:
    """How many images got no score.

    Args:
        counts: images of each request.
        answers: each request's scores, or what the scorer raised for it.

    Returns:
        Images by reason; all of a request that the scorer raised for are "rejected".
    """
    kinds: Tally[str] = Tally()
    for count, answer in zip(counts, answers, strict=True):
        if isinstance(answer, Scores):
            kinds.update(answer.failures.values())
        elif count:
            kinds["rejected"] += count
    return dict(kinds)
