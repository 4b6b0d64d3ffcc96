"""`metrics.jsonl`: a row an update, safe against kills, full disks and updates that are made again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpening.evaluation.files import disk_errors, plain, row_columns, write_bytes, write_parquet

JSON_LINES = "metrics.jsonl"
PARQUET = "metrics.parquet"

Row = dict[str, Any]


class MetricsLog:
    """The growing metrics of a run. Opening it mends a last line that a kill cut short.

    Args:
        folder: the run folder.

    Attributes:
        rows: one row an update, in order.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / JSON_LINES
        self.rows = read_metrics(folder)
        if self._path.exists() and self._path.read_bytes() != _lines(self.rows):
            self.rewrite(self.rows)

    def append(self, row: Row) -> None:
        """Add an update's row. Rows of that update and of later ones, from before a resume, give way.

        Args:
            row: with its `update`; updates come in order.

        Raises:
            DiskFull: if there is no room; the rows before it are intact.
        """  # noqa: DOC502
        row = plain(row)
        if self.rows and self.rows[-1]["update"] >= row["update"]:
            self.rewrite([old for old in self.rows if old["update"] < row["update"]])
        with disk_errors(self._path), self._path.open("ab") as file:
            file.write(_lines([row]))  # one write a line: a kill can cut a line short, not mix two
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Replace all rows at once.

        Args:
            rows: one an update, in order.

        Raises:
            DiskFull: if there is no room; the old rows are intact.
        """  # noqa: DOC502
        rows = [plain(row) for row in rows]
        write_bytes(self._path, _lines(rows))
        self.rows = rows

    def write_table(self) -> Path:
        """Write the rows as `metrics.parquet`.

        Returns:
            The file.
        """
        path = self._folder / PARQUET
        write_parquet(path, row_columns(self.rows))
        return path


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def read_metrics(folder: Path) -> list[Row]:
    """Rows of a run, also while it runs or after it was killed.

    Args:
        folder: the run folder.

    Returns:
        One row an update, in order: of several rows of one update the last, without a last line cut short.

    Raises:
        ValueError: if a line before the last is no row.
    """
    path = folder / JSON_LINES
    lines = path.read_bytes().splitlines() if path.exists() else []
    newest: dict[int, Row] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            newest[int(row["update"])] = row
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path} line {number} is no row of metrics; remove that line") from error
    return [newest[update] for update in sorted(newest)]
