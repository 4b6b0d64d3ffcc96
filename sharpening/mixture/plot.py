"""The figure of the world of scalars: what each system samples against the base and against p*."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sharpening.evaluation.comparison.plot_style import finish_axes, new_figure, png
from sharpening.evaluation.plots import BLUE, GREY, LIGHT, RED
from sharpening.mixture.experiments import SLOPE, Draws
from sharpening.mixture.law import Mixture, World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = np.linspace(-3.5, 3.5, 57)
_HEIGHT = 1.2  # of the densities' axis


def picture(
    world: World,
    systems: dict[str, Draws],
    curves: dict[str, dict[int, float]],
    budgets: dict[str, dict[int, float]],
) -> bytes:
    """Draw histograms by system and prompt, and the distance to p* against updates and against a search's budget.

    Args:
        world: the base laws.
        systems: samples by system.
        curves: distance to p* by number of updates, for each method.
        budgets: distance to p* by number of images or particles, for each search.

    Returns:
        A PNG.
    """
    figure = new_figure(2.1 * len(systems), 8.0)
    halves = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    above, below = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    grid = above.subplots(len(world.laws), len(systems), sharex=True, sharey=True)
    for row, (prompt, law) in enumerate(world.laws.items()):
        for column, (name, draws) in enumerate(systems.items()):
            axes = grid[row, column]
            _histogram(axes, draws[prompt], law)
            finish_axes(axes, name.replace(", ", ",\n") if row == 0 else "")
            if column == 0:
                axes.set_ylabel(f"“{prompt}”\ndensity")
            if row == len(world.laws) - 1:
                axes.set_xlabel("x, which is the reward")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    left, right = below.subplots(1, 2, sharey=True)
    _lines(left, curves, ((BLUE, ","), (RED, ",")), "upper right")
    left.set_ylabel("Wasserstein-1 distance to p*")
    left.set_xlabel("updates")
    finish_axes(left, "Distance to p* in training")
    _lines(right, budgets, ((BLUE, "o"), (GREY, "s"), (RED, "D")), "upper center")
    right.set_xscale("log", base=2)
    right.set_xticks([2**k for k in range(7)], labels=[str(2**k) for k in range(7)])
    right.set_xlabel("N: particles, images drawn, or noises tried at each step")
    finish_axes(right, "Distance to p* against the budget of a search")
    return png(figure)


def _histogram(axes: Axes, samples: np.ndarray, law: Mixture) -> None:
    x = np.linspace(_BINS[0], _BINS[-1], 400)
    axes.hist(samples, bins=_BINS.tolist(), density=True, color=LIGHT, label="samples")
    top = np.histogram(samples, bins=_BINS, density=True)[0].max()
    axes.set_ylim(0, _HEIGHT)
    if top > _HEIGHT:
        axes.text(0.03, 0.95, f"cut off, peak {top:.1f}", transform=axes.transAxes, fontsize=8, va="top")
    axes.plot(x, law.density(x), color=GREY, linewidth=1.2, linestyle="--", label="base p(x | c)")
    axes.plot(x, law.tilt(SLOPE).density(x), color=RED, linewidth=1.6, label="optimum p*(x | c), β = 1")


def _lines(axes: Axes, lines: dict[str, dict[int, float]], styles: Sequence[tuple[str, str]], legend: str) -> None:
    for (name, points), (colour, marker) in zip(lines.items(), styles, strict=True):
        axes.plot(list(points), list(points.values()), color=colour, marker=marker, markersize=4, label=name)
    axes.set_ylim(0, 1.2)
    axes.legend(frameon=False, fontsize=9, loc=legend)
