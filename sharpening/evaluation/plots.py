"""The reward curve: level and spread over branches (the paper's Figure 6), with loss and implicit accuracy below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpening.rewards.terms import reward_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, LIGHT, RED, GREY, BLACK = "#1f5a96", "#a9c7e4", "#b5452c", "#666666", "#1a1a1a"
PARTS = ("#2a8a57", "#c98a1b", "#7a4a9e", "#3a9fb5")
SIZE, DPI = (8.0, 6.5), 130
LEGEND: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "fontsize": 8,
    "frameon": False,
    "borderpad": 0,
}


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A metric over the rows; NaN (a gap in the line) where it is absent."""
    return np.array([np.nan if row.get(name) is None else float(row[name]) for row in rows])


def reward_curve(
    rows: Sequence[Mapping[str, Any]],
    reward: str = "reward",
    held_out: Sequence[Mapping[str, Any]] = (),
    parts: Sequence[str] = (),
) -> bytes:
    """Draw a run's curves.

    Args:
        rows: a row an update with `update`, `reward`, `reward_spread`, and where known `reward_best`,
            `reward_worst`, `loss` and `accuracy`.
        reward: the reward's name and unit, for the axis.
        held_out: looks at held-out prompts, a row each with `update` (updates made until then), `reward`, and `alarm`
            where only the training reward rises; from the first alarm on, the background is red.
        parts: names of several rewards that are combined. Then the upper panel shows their level, `reward_level`, and
            each one's mean, all in standard deviations of the first update's scores.

    Returns:
        A PNG of 1040 × 845 pixels. Above: mean reward of the rollouts, a band of one standard deviation over a
        prompt's branches, its best and worst branch. Below: loss on fresh pairs, and the share of pairs that the
        policy ranks as the reward does.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("there is no update to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    updates = np.array([int(row["update"]) + 1 for row in rows])
    if parts:
        _draw_levels(above, updates, rows, parts)
    else:
        _draw_reward(above, updates, rows, reward)
    _draw_held_out(above, held_out, int(updates[-1]))
    above.legend(ncols=6, **LEGEND)
    _draw_learning(below, updates, rows)
    for axes in (above, below):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top"]].set_visible(False)
        axes.margins(x=0.01)
    below.xaxis.get_major_locator().set_params(integer=True)
    above.spines[["right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_reward(axes: Axes, updates: np.ndarray, rows: Sequence[Mapping[str, Any]], reward: str) -> None:
    mean, spread = _series(rows, "reward"), _series(rows, "reward_spread")
    marker = "o" if len(updates) < 12 else None
    axes.fill_between(updates, mean - spread, mean + spread, color=LIGHT, alpha=0.6, linewidth=0, label="± std")
    axes.plot(updates, _series(rows, "reward_best"), color=BLUE, linewidth=0.8, linestyle=":", label="best branch")
    axes.plot(updates, _series(rows, "reward_worst"), color=GREY, linewidth=0.8, linestyle=":", label="worst branch")
    axes.plot(updates, mean, color=BLUE, linewidth=2.0, marker=marker, markersize=3, label="mean")
    axes.set_ylabel(f"{reward}, rollouts")
    axes.set_title("Reward of the rollouts and its spread over branches", loc="left", fontsize=11, pad=22)


def _draw_levels(axes: Axes, updates: np.ndarray, rows: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> None:
    marker = "o" if len(updates) < 12 else None
    level = _series(rows, "reward_level")
    axes.plot(updates, level, color=BLUE, linewidth=2.0, marker=marker, markersize=3, label="together")
    for name, colour in zip(parts, PARTS, strict=False):  # more lines than colours could not be told apart
        (mean, std) = (_series(rows, f"{reward_column(name)}_{what}") for what in ("mean", "std"))
        axes.plot(updates, (mean - mean[0]) / (std[0] or 1.0), color=colour, linewidth=1.0, label=name)
    axes.set_ylabel("rollouts, standard deviations of the first")
    axes.set_title("Rewards of the rollouts", loc="left", fontsize=11, pad=22)


def _draw_held_out(axes: Axes, looks: Sequence[Mapping[str, Any]], end: int) -> None:
    known = [(look["update"], look["reward"]) for look in looks if look.get("reward") is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=BLACK, linewidth=1.0, marker="s", markersize=3.5, label="held out")
    alarms = [look["update"] for look in looks if look.get("alarm")]
    if alarms:
        axes.axvspan(min(alarms), end, color=RED, alpha=0.12, linewidth=0, label="alarm")


def _draw_learning(axes: Axes, updates: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> None:
    marker = "o" if len(updates) < 12 else None
    (loss,) = axes.plot(updates, _series(rows, "loss"), color=RED, linewidth=1.4, marker=marker, markersize=3)
    axes.set_ylabel("loss (nats)", color=RED)
    axes.set_xlabel("optimiser updates")
    right = axes.twinx()
    accuracy = _series(rows, "accuracy")
    (line,) = right.plot(updates, accuracy, color=BLUE, linewidth=1.0, marker=marker, markersize=3, alpha=0.85)
    right.axhline(0.5, color=BLUE, linewidth=0.6, linestyle="--", alpha=0.5)
    right.set_ylabel("implicit accuracy (share of pairs)", color=BLUE)
    right.set_ylim(0, 1)
    right.spines[["top"]].set_visible(False)
    axes.legend([loss, line], ["loss on fresh pairs", "implicit accuracy (0.5: chance)"], ncols=2, **LEGEND)
