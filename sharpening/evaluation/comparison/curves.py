"""Reading training curves: means over seeds, smoothing, and when a loss has settled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.ndimage import uniform_filter1d
from scipy.optimize import curve_fit

from sharpening.evaluation.comparison.results import TrainingCurve

TIME_CONSTANTS = 3.0
"""A loss counts as settled after three time constants, at 95 % of its fall."""

MIN_UPDATES = 10


def over_seeds(
    curves: Sequence[TrainingCurve], metric: str
) -> tuple[Float[np.ndarray, " update"], Float[np.ndarray, "seed update"]]:
    """One metric of several runs of a system, at the updates that all of them logged it.

    Args:
        curves: runs of one system.
        metric: a key of their rows.

    Returns:
        Updates, counted from 1, and the metric's values, a row a run; both empty where a run never logged it.
    """
    runs = [{int(r["update"]) + 1: float(r[metric]) for r in c.rows if r.get(metric) is not None} for c in curves]
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    return np.array(shared, dtype=np.float64), np.array([[run[u] for u in shared] for run in runs])


def smooth(values: Float[np.ndarray, "*seed update"], window: int) -> Float[np.ndarray, "*seed update"]:
    """Centred running mean; at the ends the first and last values are repeated.

    Args:
        values: a value an update.
        window: updates averaged.

    Returns:
        As many values.
    """
    return uniform_filter1d(values, size=max(1, window), axis=-1, mode="nearest")


def settled_at(updates: Float[np.ndarray, " update"], loss: Float[np.ndarray, " update"]) -> float | None:
    """The update at which a loss has settled: what Figure 4 compares.

    An exponential `level + fall·exp(−update / τ)` is fitted by least squares, so that the noise of single updates
    does not decide, and three time constants τ taken.

    Args:
        updates: the updates.
        loss: loss at each.

    Returns:
        `3 τ`, from the first update on; `None` where no fall is fitted, or it is not over within the updates.
    """
    if len(loss) < MIN_UPDATES:
        return None
    since = updates - updates[0]
    tenth = max(1, len(loss) // 10)
    guess = (loss[-tenth:].mean(), loss[:tenth].mean() - loss[-tenth:].mean(), since[-1] / 5)
    bounds = ((-np.inf, -np.inf, np.diff(updates).min()), (np.inf, np.inf, 10 * since[-1]))
    try:
        (_, fall, constant), _ = curve_fit(_decay, since, loss, p0=guess, bounds=bounds)
    except RuntimeError:  # no such curve fits
        return None
    settled = TIME_CONSTANTS * float(constant)
    return float(updates[0]) + settled if fall > 0 and settled <= since[-1] else None


def _decay(
    since: Float[np.ndarray, " update"], level: float, fall: float, constant: float
) -> Float[np.ndarray, " update"]:
    return level + fall * np.exp(-since / constant)
