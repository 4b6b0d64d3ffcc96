"""Pictures of a sweep: gain over two of the options that are varied, and held-out reward against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.sweeping.space import LOG_FROM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rayjobs.sweeping.report import PointResult

SYMBOLS = {"branches": "branches n", "temperature": "temperature λ", "branch_steps": "branch steps m", "beta": "β"}


MOST = 12  # values that have a row or column each
PARTS = 8


class _Axis:
    """Values of an option as rows or columns.

    Args:
        values: those that occur.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._values = sorted(set(values))
        self._ends: np.ndarray | None = None
        if len(self._values) <= MOST:
            self.labels = [f"{value:g}" for value in self._values]
            return
        low, high = self._values[0], self._values[-1]
        far = low > 0 and high / low >= LOG_FROM
        self._ends = np.geomspace(low, high, PARTS + 1) if far else np.linspace(low, high, PARTS + 1)
        self.labels = [f"{a:.2g} to {b:.2g}" for a, b in pairwise(self._ends)]

    def place(self, value: float) -> int:
        """Which row or column a value belongs to."""
        if self._ends is None:
            return self._values.index(value)
        return int(np.clip(np.searchsorted(self._ends, value, side="right") - 1, 0, PARTS - 1))


def heat_map(points: Sequence[PointResult], across: str, down: str) -> bytes:
    """Draw the mean gain over two options; where others are varied too, the best over those.

    An option with many values, drawn from a range, is cut into parts of it; each shows its best.

    Args:
        points: those with a gain.
        across: the option whose values are the columns.
        down: the option whose values are the rows.

    Returns:
        A PNG.
    """
    columns, rows = (_Axis([result.point[name] for result in points]) for name in (across, down))
    gains = np.full((len(rows.labels), len(columns.labels)), np.nan)
    for result in points:
        assert result.gain is not None
        place = rows.place(result.point[down]), columns.place(result.point[across])
        gains[place] = np.fmax(gains[place], result.gain.mean)
    figure = _figure((1.6 + 0.9 * len(columns.labels), 1.4 + 0.6 * len(rows.labels)))
    axes = figure.subplots()
    reach = float(np.nanmax(np.abs(gains))) or 1.0
    image = axes.imshow(gains, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), gain in np.ndenumerate(gains):
        if not np.isnan(gain):
            colour = "white" if abs(gain) > 0.6 * reach else "black"
            axes.text(column, row, f"{gain:+.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns.labels)), columns.labels)
    if max(map(len, columns.labels)) > 6:
        axes.tick_params(axis="x", rotation=30)
    axes.set_yticks(range(len(rows.labels)), rows.labels)
    axes.set_xlabel(SYMBOLS.get(across, across))
    axes.set_ylabel(SYMBOLS.get(down, down))
    figure.colorbar(image, label="gain of held-out reward")
    return _png(figure)


def reward_against_nfe(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Draw each run's held-out reward over what its training has cost.

    Args:
        curves: by the run's name: network evaluations in millions, and reward.

    Returns:
        A PNG.
    """
    from matplotlib import colormaps

    figure = _figure((7.5, 4.5))
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.9, max(1, len(curves))))
    for (name, (nfe, reward)), colour in zip(curves.items(), colours, strict=False):
        axes.plot(nfe, reward, marker="o", markersize=3, linewidth=1.2, color=colour, label=name)
    axes.set_xlabel("network evaluations of the training, millions")
    axes.set_ylabel("reward of held-out images")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(curves) <= 16:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="best first")
    return _png(figure)


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(buffer, format="png", metadata=metadata)
    return buffer.getvalue()
