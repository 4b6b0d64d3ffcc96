"""The comparison's figures: Figures 4 to 6 of the paper, guidance, swept options, differences, reward and verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sharpening.evaluation.comparison.columns import COLUMNS
from sharpening.evaluation.comparison.curves import over_seeds, settled_at, smooth
from sharpening.evaluation.comparison.divergence import REWARD, VERIFIERS, Divergence
from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.comparison.guidance import GuidanceRow
from sharpening.evaluation.comparison.plot_style import MARKERS, colour_of, finish_axes, new_figure, png
from sharpening.evaluation.comparison.results import TrainingCurve
from sharpening.evaluation.comparison.systems import BASE, OURS, SYSTEMS, title_of
from sharpening.evaluation.plots import BLUE, GREY, LIGHT, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SMOOTHING = 20
"""Training curves are running means over this part of their updates."""


@dataclass(frozen=True)
class CostPoint:
    """A point of Figure 5.

    Attributes:
        system: the system.
        nfe: denoiser evaluations an image.
        value: estimate at that cost.
    """

    system: str
    nfe: int
    value: Estimate


def by_system(curves: Sequence[TrainingCurve]) -> dict[str, list[TrainingCurve]]:
    """Training curves grouped by system, in the order of the tables; others follow."""
    names = [*(name for name in SYSTEMS), *dict.fromkeys(c.system for c in curves if c.system not in SYSTEMS)]
    groups = {name: [curve for curve in curves if curve.system == name] for name in names}
    return {name: runs for name, runs in groups.items() if runs}


def loss_figure(curves: Sequence[TrainingCurve]) -> bytes:
    """Figure 4: loss of each system's training over its updates.

    Args:
        curves: runs whose rows have `loss`.

    Returns:
        A PNG. A line a system, the running mean over a twentieth of the updates and over its seeds, scaled to run from
        1 at its start to 0 at its end since the losses have different units; the dot is where it has settled
        (`settled_at`). Behind it the band of its seeds.
    """
    figure = new_figure()
    axes = figure.subplots()
    for name, runs in by_system(curves).items():
        updates, losses = over_seeds(runs, "loss")
        if len(updates) < 2:
            continue
        window = max(1, len(updates) // SMOOTHING)
        level = smooth(losses, window)
        mean = level.mean(axis=0)
        final = mean[-max(1, len(mean) // 10) :].mean()
        unit = max(abs(mean[0] - final), 1e-12)
        colour, scaled = colour_of(name), (level - final) / unit
        if len(runs) > 1:
            axes.fill_between(updates, scaled.min(axis=0), scaled.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        settled = settled_at(updates, losses.mean(axis=0))
        where = f": settled after {settled:,.0f} updates" if settled else ": did not settle"
        axes.plot(updates, (mean - final) / unit, color=colour, linewidth=1.8, label=title_of(name) + where)
        if settled:
            place = int(np.searchsorted(updates, settled))
            axes.plot(settled, (mean[place] - final) / unit, "o", color=colour, markersize=7, markeredgecolor="white")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="optimiser updates", ylabel="loss, as a share of its whole fall")
    finish_axes(axes, "How fast the loss settles")
    _legend(axes)
    return png(figure)


def cost_figure(points: Sequence[CostPoint], label: str) -> bytes:
    """Figure 5: score against denoiser evaluations an image.

    Args:
        points: searches at several budgets, and the base model and fine-tuned models at theirs.
        label: what the score is.

    Returns:
        A PNG, logarithmic in NFE: a line a search, a diamond a fine-tuned model, 95 % intervals. The dashed line is
        the base model.
    """
    figure = new_figure(8.5, 5.2)
    axes = figure.subplots()
    names = [*SYSTEMS, *dict.fromkeys(p.system for p in points if p.system not in SYSTEMS)]
    drawn = [name for name in names if any(p.system == name for p in points)]
    searches, models = ([n for n in drawn if (n in MARKERS) == search] for search in (True, False))
    for name in drawn:
        own = sorted((p for p in points if p.system == name), key=lambda p: p.nfe)
        search = name in MARKERS
        group = searches if search else models  # of one cost each: side by side, or intervals would hide one another
        shift = 1.03 ** (group.index(name) - (len(group) - 1) / 2)
        means = [p.value.mean for p in own]
        errors = [[p.value.half for p in own]] * 2
        style = f"-{MARKERS[name]}" if search else "*" if name in SYSTEMS and SYSTEMS[name].ours else "d"
        axes.errorbar(
            [p.nfe * shift for p in own], means, yerr=errors, fmt=style, color=colour_of(name), capsize=2.5,
            linewidth=1.3, elinewidth=0.9, markersize=13 if style == "*" else 6, label=title_of(name),
            zorder=4 if style == "*" else 2,
        )  # fmt: skip
        if name == BASE:
            axes.axhline(means[0], color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    costs = sorted({p.nfe for p in points})
    axes.set_xticks(costs, [f"{cost:,}" for cost in costs])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="denoiser evaluations an image (NFE)", ylabel=label)
    finish_axes(axes, "Score against cost at inference")
    _legend(axes, outside=True)
    return png(figure)


def reward_figure(curves: Sequence[TrainingCurve], reward: str) -> bytes:
    """Figure 6: level of the training reward, and its spread over branches, during training.

    Args:
        curves: runs whose rows have `reward`, and `reward_spread` where there are branches.
        reward: the reward's name and unit.

    Returns:
        A PNG of two panels: mean and spread, a line a system with the band of its seeds.
    """
    figure = new_figure(8.0, 6.5)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, metric in zip(panels, ("reward", "reward_spread"), strict=True):
        for name, runs in by_system(curves).items():
            updates, values = over_seeds(runs, metric)
            if len(updates) < 2:
                continue
            level, colour = smooth(values, max(1, len(updates) // SMOOTHING)), colour_of(name)
            if len(runs) > 1:
                axes.fill_between(updates, level.min(axis=0), level.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(updates, level.mean(axis=0), color=colour, linewidth=1.8, label=title_of(name))
    panels[0].set_ylabel(f"{reward}, mean")
    panels[1].set(ylabel="std over branches", xlabel="optimiser updates")
    finish_axes(panels[0], "Training reward, and its spread over branches")
    finish_axes(panels[1], "")
    _legend(panels[0])
    return png(figure)


def guidance_figure(rows: Sequence[GuidanceRow], label: str) -> bytes:
    """Score over guidance scales.

    Args:
        rows: from `guidance_table`.
        label: what the score is.

    Returns:
        A PNG: a line a model; 95 % intervals of the base model and of RLHF sharpening, others' would hide these.
    """
    figure = new_figure(8.5, 5.0)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        scales = sorted(row.by_scale)
        shown = row.system in (BASE, OURS)
        shift = 0.01 * (number - (len(rows) - 1) / 2)
        axes.errorbar(
            [scale + shift for scale in scales], [row.by_scale[s].mean for s in scales],
            yerr=[row.by_scale[s].half for s in scales] if shown else None, fmt="-o", color=colour_of(row.system),
            capsize=2.5, linewidth=2.2 if shown else 1.2, elinewidth=0.9, zorder=3 if shown else 2, markersize=4,
            label=title_of(row.system),
        )  # fmt: skip
    ticks = sorted({scale for row in rows for scale in row.by_scale})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel="guidance scale w (1: unguided, half the NFE)", ylabel=label)
    finish_axes(axes, "Score over guidance")
    _legend(axes, outside=True)
    return png(figure)


def sweep_figure(differences: Mapping[str, Mapping[str, Estimate]], symbol: str) -> bytes:
    """What training brings over one option: branches n, steps m or temperature λ.

    Args:
        differences: by what differs, the paired difference to the base model by the option's value, in its order.
        symbol: the option's symbol.

    Returns:
        A PNG with 95 % intervals, a panel a score. The values stand at equal distances, as they are chosen by doubling.
    """
    figure = new_figure(4.6 * len(differences), 3.8)
    panels = figure.subplots(1, len(differences), squeeze=False)[0]
    for axes, (label, found) in zip(panels, differences.items(), strict=True):
        places = range(len(found))
        means, halves = ([getattr(one, what) for one in found.values()] for what in ("mean", "half"))
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1.0)
        axes.errorbar(places, means, yerr=halves, fmt="-o", color=BLUE, capsize=3, linewidth=1.8)
        axes.set_xticks(list(places), list(found))
        axes.set(xlabel=symbol, ylabel=f"{label}, against base")
        finish_axes(axes, f"Gain over {symbol}")
    return png(figure)


def forest_figure(differences: Mapping[str, Estimate], label: str) -> bytes:
    """Differences to the base model, one under the other.

    Args:
        differences: paired difference by system.
        label: what differs.

    Returns:
        A PNG: mean and 95 % interval a system, blue above zero, red below, grey where the interval holds zero or there
        are too few seeds.
    """
    figure = new_figure(7.5, 1.4 + 0.36 * len(differences))
    axes = figure.subplots()
    colours = {"above": BLUE, "below": RED}
    for place, found in enumerate(differences.values()):
        colour = colours.get(found.word, GREY)
        axes.errorbar(found.mean, place, xerr=found.half, fmt="o", color=colour, capsize=3, linewidth=1.6)
        axes.annotate(f"{found.mean:+.3f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(0, color="black", linewidth=0.9)
    axes.set_yticks(range(len(differences)), [title_of(name) for name in differences])
    for name, text in zip(differences, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name in SYSTEMS and SYSTEMS[name].ours else "normal")
    axes.set_ylim(len(differences) - 0.4, -0.6)
    axes.set_xlabel(f"{label}, difference to the base model")
    finish_axes(axes, "Difference to the base model, same prompts and noise, 95 %")
    return png(figure)


def divergence_figure(found: Sequence[Divergence]) -> bytes:
    """What each system did to the reward, and to the verifiers that it never saw.

    Args:
        found: systems at one guidance scale.

    Returns:
        A PNG: a point a system with 95 % intervals, against the base model. Where only the reward rises, the ground is
        red.
    """
    figure = new_figure(8.5, 5.2)
    axes = figure.subplots()
    for one in found:
        ours = one.system in SYSTEMS and SYSTEMS[one.system].ours
        axes.errorbar(
            one.reward.mean, one.verifiers.mean, xerr=one.reward.half, yerr=one.verifiers.half, capsize=2,
            fmt=MARKERS.get(one.system, "*" if ours else "d"), markersize=12 if ours else 6,
            color=colour_of(one.system), elinewidth=0.9, label=title_of(one.system),
        )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    x, y = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(min(x[0], 0), max(x[1], 0)), ylim=(min(y[0], 0), max(y[1], 0)))
    axes.fill_between([0, axes.get_xlim()[1]], axes.get_ylim()[0], 0, color=RED, alpha=0.1, linewidth=0)
    axes.set(xlabel=COLUMNS[REWARD].meaning, ylabel=COLUMNS[VERIFIERS].meaning)
    finish_axes(axes, "Reward and verifiers, difference to the base model")
    _legend(axes, outside=True)
    return png(figure)


def _legend(axes: Axes, *, outside: bool = False) -> None:
    """A legend where it hides nothing; beside the axes when there are many lines."""
    if outside:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8, frameon=True, framealpha=0.85, edgecolor=LIGHT)
