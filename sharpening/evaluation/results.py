"""The results of a run as rows and as numbers, from its `summary.json`: for trackers and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sharpening.rewards.terms import reward_column

COLUMNS = ("guidance", "prompts", "metric", "before", "after", "difference", "low", "high")
"""Headings of `result_rows`; low and high are the ends of the difference's 95 % interval."""
OVERALL = ("reward", "facts", "all")


def result_rows(summary: Mapping[str, Any]) -> list[tuple[str | float, ...]]:
    """Every metric at every guidance scale that was evaluated.

    Args:
        summary: contents of `summary.json`.

    Returns:
        A row a metric, with the columns of `COLUMNS`; the scale the model was trained for first, with its categories,
        then the others, with what is over all prompts.
    """
    own = f"{summary['guidance_scale']:g}"
    rewards = {reward_column(name) for name in summary.get("rewards", {})}
    rows: list[tuple[str | float, ...]] = []
    for scale, found in summary["guidance"].items():
        for name, metric in found["metrics"].items():
            if scale != own and name not in OVERALL and name not in rewards:
                continue
            before, after, gap = (metric[side] for side in ("before", "after", "difference"))
            means = (before["mean"], after["mean"], gap["mean"], gap["low"], gap["high"])
            rows.append((scale, float(found["prompts"]), name, *means))
    return rows


def result_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The same over all prompts as named numbers.

    Args:
        summary: contents of `summary.json`.

    Returns:
        `guidance_1/reward/difference_low` and the like.
    """
    numbers = {}
    for scale, _, name, *values in result_rows(summary):
        if name in OVERALL:
            sides = ("before", "after", "difference", "difference_low", "difference_high")
            pairs = zip(sides, values, strict=True)
            numbers |= {f"guidance_{scale}/{name}/{side}": float(value) for side, value in pairs}
    return numbers
