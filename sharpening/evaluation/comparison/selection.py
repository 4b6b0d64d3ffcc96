"""Which of a system's settings stands in which table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sharpening.evaluation.comparison.records import Setting, SystemCost
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.systems import BASE, SYSTEMS

ROUNDING = 1.05
"""A search may overshoot its budget by its last step and still count as within it."""


def base_setting(results: ComparisonResults, scores: Scores) -> Setting | None:
    """The base model as the main table shows it; `None` if it was not judged."""
    return next(iter(scores.of(BASE, results.guidance_scale, results.steps)), None)


def main_settings(results: ComparisonResults, scores: Scores) -> dict[str, Setting]:
    """One setting a system, at the comparison's guidance and steps.

    A search with several budgets stands at the largest one within `search_multiple` times the base model's NFE an
    image, or else at its smallest.

    Args:
        results: everything measured.
        scores: its judgements.

    Returns:
        Setting by system, in the order of the tables; systems that were not judged are left out.
    """
    base = base_setting(results, scores)
    found: dict[str, Setting] = {}
    for name in SYSTEMS:
        choices = scores.of(name, results.guidance_scale, results.steps)
        if not choices:
            continue
        limit = results.search_multiple * base.nfe * ROUNDING if base else float("inf")
        found[name] = max((s for s in choices if s.nfe <= limit), key=lambda s: s.nfe, default=choices[0])
    return found


def of_same_seeds(results: ComparisonResults, sweep: Sweep) -> ComparisonResults:
    """What was measured with the seeds that every value of an option has, so that its rows compare.

    Args:
        results: everything measured.
        sweep: the option.

    Returns:
        Judgements and costs of those seeds, of all systems.
    """
    systems = {*sweep.systems.values(), BASE}
    seeds = [{row.seed for row in results.judgements if row.system == system} for system in systems]
    common = set.intersection(*(own for own in seeds if own)) if any(seeds) else set()
    judgements = [row for row in results.judgements if row.seed in common]
    return replace(results, judgements=judgements, costs=[cost for cost in results.costs if cost.seed in common])


def mean_cost(costs: Iterable[SystemCost], setting: Setting) -> dict[str, float] | None:
    """Mean cost over a system's seeds.

    Args:
        costs: all rows.
        setting: of a system; rows of its own NFE an image are preferred, which tells a search's budgets apart.

    Returns:
        Means of the numbers of `SystemCost`; `seconds_per_image` is left out where only rows of another NFE an image
        are known. `None` where the system has no row.
    """
    rows = [cost for cost in costs if cost.system == setting.system]
    exact = [cost for cost in rows if cost.nfe_per_image == setting.nfe]
    if not rows:
        return None
    numbers = ["training_nfe", "training_seconds", "device_seconds", "updates", "images_scored"]
    numbers += ["seconds_per_image"] if exact else []
    used = exact or rows
    return {name: sum(getattr(cost, name) for cost in used) / len(used) for name in numbers}
