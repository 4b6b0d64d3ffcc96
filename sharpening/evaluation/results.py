"""The results of a run as rows and as numbers, from its `summary.json`: for trackers and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sharpening.rewards.terms import reward_column

OVERALL = ("reward", "facts", "all")


class Result(NamedTuple):
    """One metric at one guidance scale, before and after training on the same prompts.

    Attributes:
        guidance: the scale.
        prompts: how many prompts.
        metric: the metric's name, with the category's where it is of one.
        before: mean before training.
        after: mean after training.
        difference: mean of the prompts' own differences.
        low: lower end of the difference's 95 % interval.
        high: upper end of it.
    """

    guidance: str
    prompts: int
    metric: str
    before: float
    after: float
    difference: float
    low: float
    high: float


def result_rows(summary: Mapping[str, Any]) -> list[Result]:
    """Every metric at every guidance scale that was evaluated.

    Args:
        summary: contents of `summary.json`.

    Returns:
        The scale the model was trained for first, with its categories, then the others, with what is over all prompts.
    """
    own = f"{summary['guidance_scale']:g}"
    overall = {*OVERALL, *(reward_column(name) for name in summary.get("rewards", {}))}
    return [
        Result(
            scale, found["prompts"], name, metric["before"]["mean"], metric["after"]["mean"],
            *(metric["difference"][side] for side in ("mean", "low", "high")),
        )
        for scale, found in summary["guidance"].items()
        for name, metric in found["metrics"].items()
        if scale == own or name in overall
    ]  # fmt: skip


def result_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The same over all prompts as named numbers.

    Args:
        summary: contents of `summary.json`.

    Returns:
        `guidance_1/reward/low` and the like.
    """
    sides = ("before", "after", "difference", "low", "high")
    rows = [row for row in result_rows(summary) if row.metric in OVERALL]
    return {f"guidance_{row.guidance}/{row.metric}/{side}": getattr(row, side) for row in rows for side in sides}
