"""What a comparison lacks, named with its reason instead of being filled in."""

from __future__ import annotations

from sharpening.evaluation.comparison.columns import COLUMNS
from sharpening.evaluation.comparison.curves import over_seeds
from sharpening.evaluation.comparison.divergence import divergences
from sharpening.evaluation.comparison.estimate import MIN_SEEDS
from sharpening.evaluation.comparison.guidance import equal_cost_table, guidance_table
from sharpening.evaluation.comparison.results import ComparisonResults
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import main_settings
from sharpening.evaluation.comparison.systems import SYSTEMS, title_of

SWEEPS = {"branches": "n", "steps": "m", "temperature": "λ"}


def missing_parts(results: ComparisonResults, scores: Scores) -> dict[str, str]:
    """Every part of the report that cannot be written.

    Args:
        results: everything measured.
        scores: its judgements.

    Returns:
        Reason by part: the one given in `results.missing`, or what the data lack. Reasons given for parts that were
        measured only in part are kept.
    """
    found: dict[str, str] = {}
    settings = main_settings(results, scores)
    at = f"at guidance {results.guidance_scale:g} with {results.steps} steps"
    for name in SYSTEMS:
        if name not in settings:
            found[name] = f"no image of it was judged {at}"
    for name in COLUMNS:
        if not scores.measured(name):
            found[name] = "no image has a score of it"
    for name, setting in settings.items():
        seeds = len(scores.table(setting, results.overall))
        if seeds < MIN_SEEDS:
            found[f"{name}: seeds"] = f"{seeds} of {MIN_SEEDS} seeds, so nothing is called better or worse"
        if not any(cost.system == name for cost in results.costs):
            found[f"{name}: cost"] = "no cost was recorded"
    given = {sweep.name for sweep in results.sweeps}
    found |= {name: f"{symbol} was not varied" for name, symbol in SWEEPS.items() if name not in given}
    if not guidance_table(scores, results.overall, results.steps):
        found["guidance"] = "no model was judged at two guidance scales"
    if not equal_cost_table(scores, results.overall):
        found["equal NFE"] = "no unguided image was judged at the NFE of a guided one"
    for metric, title in (("loss", "loss curves"), ("reward", "reward curves")):
        if not any(len(over_seeds([curve], metric)[0]) > 1 for curve in results.curves):
            found[title] = "no training run was recorded"
    if not divergences(scores, results.steps):
        found["alarms"] = "reward and verifiers of a system and of the base model are not all known"
    for part in ("diversity", "trials", "command", "commit", "machine"):
        if not getattr(results, part):
            found[part] = "not recorded"
    return found | dict(results.missing)


def describe(part: str) -> str:
    """A part's name as it is printed."""
    if part in COLUMNS:
        return f"column {COLUMNS[part].title}"
    name, _, rest = part.partition(": ")
    return title_of(name) + (f", {rest}" if rest else "")
