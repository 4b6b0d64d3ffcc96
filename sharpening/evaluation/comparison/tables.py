"""The main table (Table 1's analogue) and the tables of one option (Tables 2 and 3, the temperature)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from sharpening.evaluation.comparison import paper
from sharpening.evaluation.comparison.columns import COLUMNS, SHORT
from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.comparison.records import Setting
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import base_setting, main_settings, mean_cost
from sharpening.evaluation.comparison.systems import BASE, title_of


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        value: mean over seeds and prompts; `None` where it was not measured.
        difference: mean paired difference to the base model; `None` for the base model itself.
    """

    value: Estimate | None
    difference: Estimate | None = None

    @property
    def mark(self) -> str:
        """▲ or ▼ where the paired difference to the base is decided, else nothing."""
        word = self.difference.word if self.difference else ""
        return {"above": "▲", "below": "▼"}.get(word, "")


@dataclass(frozen=True)
class Row:
    """One system's row.

    Attributes:
        title: as it is printed.
        setting: how its images were made.
        cells: cell by column.
        cost: mean cost by name, from `mean_cost`; `None` where it is not known.
    """

    title: str
    setting: Setting
    cells: dict[str, Cell]
    cost: dict[str, float] | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: the columns that were measured.
        rows: its rows.
    """

    columns: tuple[str, ...]
    rows: list[Row]


def main_table(results: ComparisonResults, scores: Scores) -> Table:
    """Table 1's analogue: every system at the comparison's guidance and steps.

    Each cell is a mean over seeds and prompts with the interval of `crossed_interval`, and the mean of the paired
    differences to the base model on the same prompts and noise seeds with its own.

    Args:
        results: everything measured.
        scores: its judgements.

    Returns:
        A row a system that was judged, a column a judge that said something.
    """
    columns = tuple(name for name in COLUMNS if scores.measured(name))
    settings = main_settings(results, scores)
    rows = [_row(title_of(name), s, settings.get(BASE), columns, results, scores) for name, s in settings.items()]
    return Table(columns, rows)


def _row(
    title: str,
    setting: Setting,
    base: Setting | None,
    columns: Sequence[str],
    results: ComparisonResults,
    scores: Scores,
) -> Row:
    cells = {}
    for column in columns:
        compared = base is not None and base != setting
        difference = scores.difference(setting, base, column) if compared and base else None
        cells[column] = Cell(scores.estimate(setting, column), difference)
    return Row(title, setting, cells, mean_cost(results.costs, setting))


def sweep_table(sweep: Sweep, results: ComparisonResults, scores: Scores) -> Table:
    """The table of one option: a row a value, differences to the base model.

    Args:
        sweep: the option and its systems.
        results: everything measured.
        scores: its judgements.

    Returns:
        Rows in order of the values, at the comparison's guidance and steps; values that were not judged are left out.
    """
    base = base_setting(results, scores)
    columns = tuple(name for name in SHORT if scores.measured(name))
    rows = []
    for value, system in sorted(sweep.systems.items()):
        for setting in scores.of(system, results.guidance_scale, results.steps)[:1]:
            rows.append(_row(f"{sweep.symbol} = {value:g}", setting, base, columns, results, scores))
    return Table(columns, rows)


def sweep_agreement(sweep: Sweep, table: Table) -> dict[str, float]:
    """Spearman's correlation over an option's values between our means and the paper's.

    Args:
        sweep: the option.
        table: from `sweep_table`.

    Returns:
        Correlation by column that both have for at least three values, not all equal.
    """
    theirs = paper.SWEEPS.get(sweep.name, {})
    values = {f"{sweep.symbol} = {value:g}": int(value) for value in sweep.systems if value in theirs}
    found = {}
    for column in set(table.columns) & {"clip", "preference", "grader"}:
        cells = [
            (row.cells[column].value, theirs[values[row.title]][column]) for row in table.rows if row.title in values
        ]
        pairs = [(ours.mean, other) for ours, other in cells if ours is not None]
        if len(pairs) >= 3 and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
            found[column] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return {column: found[column] for column in table.columns if column in found}


def paper_rows(table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    """The paper's rows with printed titles.

    Args:
        table: `paper.TABLE_1`.

    Returns:
        Title and numbers by column, in the paper's order.
    """
    titles = {"inference_scaling": "Inference Scaling"}
    return [(titles.get(name, title_of(name)), row) for name, row in table.items()]
