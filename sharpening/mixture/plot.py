"""The figure of the world of scalars: what each system samples against the base and against p*."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sharpening.evaluation.comparison.plot_style import finish_axes, new_figure, png
from sharpening.evaluation.plots import BLUE, GREY, LIGHT, RED
from sharpening.mixture.experiments import SLOPE, Draws
from sharpening.mixture.law import Mixture, World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = np.linspace(-3.5, 3.5, 57)


def picture(world: World, systems: dict[str, Draws], budgets: dict[str, dict[int, float]]) -> bytes:
    """Draw histograms by system and prompt, and the distance to p* against a search's budget.

    Args:
        world: the base laws.
        systems: samples by system.
        budgets: distance to p* by number of images or particles, for each search.

    Returns:
        A PNG.
    """
    figure = new_figure(2.1 * len(systems), 7.2)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
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
    _budget(below.subplots(), budgets)
    return png(figure)


def _histogram(axes: Axes, samples: np.ndarray, law: Mixture) -> None:
    x = np.linspace(_BINS[0], _BINS[-1], 400)
    axes.hist(samples, bins=_BINS.tolist(), density=True, color=LIGHT, label="samples")
    axes.plot(x, law.density(x), color=GREY, linewidth=1.2, linestyle="--", label="base p(x | c)")
    axes.plot(x, law.tilt(SLOPE).density(x), color=RED, linewidth=1.6, label="optimum p*(x | c), β = 1")


def _budget(axes: Axes, budgets: dict[str, dict[int, float]]) -> None:
    for (name, points), (colour, marker) in zip(budgets.items(), ((BLUE, "o"), (GREY, "s"), (RED, "D")), strict=False):
        axes.plot(list(points), list(points.values()), color=colour, marker=marker, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N: particles, images drawn, or noises tried at each step")
    axes.set_ylabel("Wasserstein-1 distance to p*")
    finish_axes(axes, "Distance to p* against the budget of a search")
    axes.legend(frameon=False, fontsize=9)
