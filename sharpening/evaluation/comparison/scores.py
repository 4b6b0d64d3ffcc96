"""Looking scores up: a table of seeds × prompts for each way of making images and each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields

import pandas as pd

from sharpening.evaluation.comparison.columns import COLUMNS
from sharpening.evaluation.comparison.estimate import Estimate, difference, estimate
from sharpening.evaluation.comparison.records import ImageJudgement, RecordError, Setting

KEYS = ["system", "guidance_scale", "steps", "nfe"]


class Scores:
    """All judgements, by the setting that made the images.

    Attributes:
        settings: the settings that occur, sorted.
    """

    def __init__(self, judgements: Sequence[ImageJudgement]) -> None:
        """Sort the judgements.

        Args:
            judgements: rows, in any order.

        Raises:
            RecordError: if two rows are of the same image.
        """
        table = pd.DataFrame({f.name: [getattr(row, f.name) for row in judgements] for f in fields(ImageJudgement)})
        twice = table[table.duplicated([*KEYS, "seed", "prompt"])] if len(table) else table
        if len(twice):
            image = judgements[int(twice.index[0])]
            raise RecordError(
                f"{len(twice)} images are judged twice, first {image.system} seed {image.seed} prompt {image.prompt} "
                f"at guidance {image.guidance_scale:g}; pass each image once"
            )
        self.settings = tuple(sorted({row.setting for row in judgements}))
        groups = table.groupby(KEYS) if len(table) else None
        self._rows = {s: groups.get_group(astuple(s)) for s in self.settings} if groups is not None else {}
        self._tables: dict[tuple[Setting, str], pd.DataFrame] = {}

    def table(self, setting: Setting, column: str) -> pd.DataFrame:
        """Scores of one column.

        Args:
            setting: how the images were made; one that does not occur has an empty table.
            column: a name of `COLUMNS`.

        Returns:
            Seeds down, prompts across; NaN where an image has no score.
        """
        rows = self._rows.get(setting)
        if rows is None:
            return pd.DataFrame()
        if (setting, column) not in self._tables:
            what = COLUMNS[column]
            if what.category is not None:
                rows = rows[rows["category"] == what.category]
            table = rows.pivot(index="seed", columns="prompt", values=what.field).astype("float64")
            self._tables[setting, column] = table
        return self._tables[setting, column]

    def estimate(self, setting: Setting, column: str) -> Estimate | None:
        """Mean of a column with its interval; `None` where it was not measured."""
        return estimate(self.table(setting, column))

    def difference(self, setting: Setting, base: Setting, column: str) -> Estimate | None:
        """Mean paired difference of a column between two settings; `None` where it was not measured."""
        return difference(self.table(setting, column), self.table(base, column))

    def of(self, system: str, guidance_scale: float | None = None, steps: int | None = None) -> list[Setting]:
        """Settings of one system, at one guidance scale and number of steps if given; in order of guidance and cost."""
        return [
            s for s in self.settings
            if s.system == system
            and guidance_scale in (None, s.guidance_scale)
            and steps in (None, s.steps)
        ]  # fmt: skip

    def measured(self, column: str) -> bool:
        """Whether any image has a score in a column."""
        what = COLUMNS[column]
        return any(
            rows[what.field].notna()[(rows["category"] == what.category) | (what.category is None)].any()
            for rows in self._rows.values()
        )
