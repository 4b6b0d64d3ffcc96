"""Tables and cells in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.statistics import Interval

NONE = "–"
"""A cell that was not measured."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column left-aligned and the others right-aligned.

    Args:
        header: column names.
        rows: cells, as many as columns.

    Returns:
        Its lines, columns padded to equal width.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in cells
    ]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    ruler = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], ruler, *lines[1:]])


def level(value: Interval | None, decimals: int, mark: str = "") -> str:
    """`0.512 ± 0.021 ▲`: a mean with half its interval's width; the intervals are symmetric."""
    if value is None:
        return NONE
    return f"{value.mean:.{decimals}f} ± {(value.high - value.low) / 2:.{decimals}f} {mark}".rstrip()


def gain(value: Estimate | None, decimals: int) -> str:
    """`+0.031 [+0.012, +0.050]`: a difference with its interval."""
    if value is None:
        return NONE
    return f"{value.mean:+.{decimals}f} [{value.low:+.{decimals}f}, {value.high:+.{decimals}f}]"


def whole(value: float | None) -> str:
    """A count or a number of seconds: `12,300`, `317`, `4.2`, `0.031`."""
    if value is None:
        return NONE
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.1f}"
