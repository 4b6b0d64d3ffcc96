"""The alarm of over-optimisation: the training reward rises while the held-out verifiers fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from sharpening.evaluation.statistics import Interval

MIN_CHECKPOINTS = 6
WINDOW = 16
ALARM_CONFIDENCE = 0.999

Status = Literal["too early", "quiet", "diverging"]


@dataclass(frozen=True)
class Checkpoint:
    """One look at a training run.

    Attributes:
        update: optimiser updates made.
        reward: mean training reward, in its unit.
        verifier: share that the held-out verifiers grant, 0 to 1.
    """

    update: int
    reward: float
    verifier: float


@dataclass(frozen=True)
class Finding:
    """What the alarm found at the newest checkpoint.

    Attributes:
        status: `diverging` is the alarm; `too early` means too few checkpoints.
        first: first update of the window that was looked at.
        last: last update of it.
        reward: slope of the reward, its unit an update; `None` when it is too early.
        verifier: slope of the verifiers' share an update; `None` when it is too early.
        sentence: the finding in words.
    """

    status: Status
    first: int
    last: int
    reward: Interval | None
    verifier: Interval | None
    sentence: str


def watch(history: Sequence[Checkpoint], window: int = WINDOW, confidence: float = ALARM_CONFIDENCE) -> Finding:
    """Look whether the reward rises while the verifiers fall.

    Both slopes over the last checkpoints are Theil and Sen's (the median of the slopes of all pairs), which one
    odd evaluation does not move, with Sen's interval from Kendall's statistic. The alarm needs the reward's interval
    above zero and the verifiers' below. The confidence is high because a run is looked at again at every checkpoint:
    of simulated runs of 40 checkpoints whose reward rises and whose verifiers only fluctuate, 1 in 400 raises a false
    alarm at any of its looks, and 1 in 10 where fluctuations have a memory (AR(1) with 0.5). A fall that begins
    half-way, by four tenths of the fluctuations' standard deviation a checkpoint, is found some 13 checkpoints later.

    Args:
        history: checkpoints in order of their updates.
        window: checkpoints looked at, the newest ones.
        confidence: of each interval.

    Returns:
        The finding.

    Raises:
        ValueError: if updates do not rise, a number is not finite, or the window is shorter than six checkpoints.
    """
    if window < MIN_CHECKPOINTS:
        raise ValueError(f"a window of {window} checkpoints shows no trend; pass {MIN_CHECKPOINTS} or more")
    updates = np.array([c.update for c in history], dtype=np.float64)
    series = np.array([[c.reward, c.verifier] for c in history], dtype=np.float64).reshape(-1, 2)
    if (np.diff(updates) <= 0).any() or not np.isfinite(series).all():
        raise ValueError("checkpoints must be in order of their updates, with finite numbers; leave out the others")
    if len(history) < MIN_CHECKPOINTS:
        sentence = f"Too early to tell: {len(history)} of {MIN_CHECKPOINTS} checkpoints."
        first, last = (history[0].update, history[-1].update) if history else (0, 0)
        return Finding("too early", first, last, None, None, sentence)
    seen, numbers = updates[-window:], series[-window:]
    reward, verifier = (slope(seen, numbers[:, column], confidence) for column in (0, 1))
    first, last = int(seen[0]), int(seen[-1])
    status: Status = "diverging" if reward.low > 0 and verifier.high < 0 else "quiet"
    return Finding(status, first, last, reward, verifier, _sentence(status, first, last, reward, verifier))


def slope(
    updates: Float[np.ndarray, " checkpoint"], values: Float[np.ndarray, " checkpoint"], confidence: float
) -> Interval:
    """Theil and Sen's slope with its interval.

    Args:
        updates: where the values were taken.
        values: the values.
        confidence: of the interval.

    Returns:
        Slope an update; zero exactly where nothing moves.
    """
    from scipy.stats import theilslopes  # a second to import, for a driver that may never look

    middle, _, low, high = theilslopes(values, updates, alpha=confidence)
    return Interval(float(middle), float(low), float(high))


def _sentence(status: Status, first: int, last: int, reward: Interval, verifier: Interval) -> str:
    span = last - first
    moved = (
        f"from update {first} to {last} the training reward moved by {span * reward.mean:+.3g} "
        f"[{span * reward.low:+.3g}, {span * reward.high:+.3g}] and the held-out verifiers' share by "
        f"{span * verifier.mean:+.3f} [{span * verifier.low:+.3f}, {span * verifier.high:+.3f}]"
    )
    if status == "diverging":
        return f"Alarm: {moved}; the model is learning the reward's blind spots, stop or go back to update {first}."
    return f"No divergence: {moved}."
