"""Which figures a report has, from what was measured."""

from __future__ import annotations

from sharpening.evaluation.comparison.columns import COLUMNS
from sharpening.evaluation.comparison.curves import over_seeds
from sharpening.evaluation.comparison.divergence import divergences
from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.comparison.guidance import guidance_table
from sharpening.evaluation.comparison.plots import (
    CostPoint,
    cost_figure,
    divergence_figure,
    forest_figure,
    guidance_figure,
    loss_figure,
    reward_figure,
    sweep_figure,
)
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep, TrainingCurve
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import main_settings, of_same_seeds
from sharpening.evaluation.comparison.systems import BASE, SYSTEMS, names_of
from sharpening.evaluation.comparison.tables import main_table, sweep_table

LOSSES = ("standard", "sft")
"""Figure 4 compares these two; other methods' losses are of another kind."""


def draw_figures(results: ComparisonResults, scores: Scores) -> dict[str, bytes]:
    """Draw every figure that there is something to draw of.

    Args:
        results: everything measured.
        scores: its judgements.

    Returns:
        PNG by file name, in the order of the report.
    """
    overall, label = results.overall, COLUMNS[results.overall].meaning.split(":")[0]
    drawn: dict[str, bytes] = {}
    differences = {
        row.setting.system: found
        for row in main_table(results, scores).rows
        if overall in row.cells and (found := row.cells[overall].difference) is not None
    }
    if differences:
        drawn["differences.png"] = forest_figure(differences, label)
    points = cost_points(results, scores)
    if len({point.nfe for point in points}) > 1:
        drawn["figure5_cost.png"] = cost_figure(points, label)
    losses = [curve for curve in results.curves if curve.system in LOSSES and _logs(curve, "loss")]
    if losses:
        drawn["figure4_loss.png"] = loss_figure(losses)
    rewards = [curve for curve in results.curves if curve.system in SYSTEMS and _logs(curve, "reward")]
    if rewards:
        drawn["figure6_reward.png"] = reward_figure(rewards, "training reward")
    both = [one for one in divergences(scores, results.steps) if one.guidance_scale == results.guidance_scale]
    if both:
        drawn["divergence.png"] = divergence_figure(both)
    rows = guidance_table(scores, overall, results.steps)
    if rows:
        drawn["guidance.png"] = guidance_figure(rows, label)
    for sweep in results.sweeps:
        gains = _differences(sweep, results)
        if gains:
            drawn[f"{sweep.name}.png"] = sweep_figure(gains, f"{sweep.name} {sweep.symbol}")
    return drawn


def cost_points(results: ComparisonResults, scores: Scores) -> list[CostPoint]:
    """Points of Figure 5: every budget of every search, the base model and the sharpened ones at theirs.

    Args:
        results: everything measured.
        scores: its judgements.

    Returns:
        The points.
    """
    searches = [s for name in names_of("search") for s in scores.of(name, results.guidance_scale, results.steps)]
    settings = main_settings(results, scores)
    models = [setting for name, setting in settings.items() if name == BASE or SYSTEMS[name].ours]
    found = [(setting, scores.estimate(setting, results.overall)) for setting in (*models, *searches)]
    return [CostPoint(setting.system, setting.nfe, value) for setting, value in found if value is not None]


def _differences(sweep: Sweep, results: ComparisonResults) -> dict[str, dict[str, Estimate]]:
    """Paired differences of an option's values to the base model, by score and value."""
    own = of_same_seeds(results, sweep)
    rows = sweep_table(sweep, own, Scores(own.judgements)).rows
    found = {}
    for column in dict.fromkeys(("clip", results.overall)):
        cells = {row.title.rpartition(" ")[2]: row.cells.get(column) for row in rows}
        known = {value: cell.difference for value, cell in cells.items() if cell and cell.difference}
        if known:
            found[COLUMNS[column].meaning.split(":")[0]] = known
    return found


def _logs(curve: TrainingCurve, metric: str) -> bool:
    return len(over_seeds([curve], metric)[0]) > 1
