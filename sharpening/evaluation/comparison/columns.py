"""The columns of the comparison's tables: what each one measures and on which images."""

from __future__ import annotations

from dataclasses import dataclass

from sharpening.shapes.captions import CATEGORIES


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: as it is printed.
        field: the field of `ImageJudgement` it averages.
        meaning: what it measures, with its unit.
        category: the category of prompts it is restricted to; `None` for all prompts.
        decimals: digits printed after the point.
    """

    title: str
    field: str
    meaning: str
    category: str | None = None
    decimals: int = 3


def _category(category: str) -> Column:
    return Column(category, "facts", f"share of facts that hold on {category} prompts", category)


COLUMNS: dict[str, Column] = {
    "clip": Column("CLIP", "clip", "CLIP reward, cosine × 100", decimals=2),
    **{category.replace("-", "_"): _category(category) for category in CATEGORIES},
    "facts": Column("facts", "facts", "share of a prompt's facts that hold, all prompts"),
    "all": Column("all facts", "all", "overall verifier score: share of prompts of which every fact holds"),
    "aesthetic": Column("aesthetic", "aesthetic", "aesthetic score"),
    "preference": Column("preference", "preference", "preference model's score"),
    "grader": Column("grader", "grader", "multimodal grader's mean of five marks, 0 to 100", decimals=2),
}
"""Table 1's analogue; higher is better in every column."""

SHORT = ("clip", "facts", "all", "preference", "grader")
"""Columns of the smaller tables."""

OVERALL = "all"
"""The overall verifier score, on which the headline is judged."""
