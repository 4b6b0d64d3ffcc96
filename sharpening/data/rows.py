"""Rows of training data whatever keeps them: a Parquet file, a folder of images, tar shards, a saved dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sharpening.data.shuffle import shuffled
from sharpening.data.source import DataFileError

Row = dict[str, Any]
"""Values of one row by column."""


class Rows(ABC):
    """Rows in a fixed order, read in any order; can be pickled, and holds no image.

    Attributes:
        path: where they are: a file or folder, absolute, because actors run in other folders; or a dataset's name.
        schema: columns and their types. An image column holds bytes, or the struct `{bytes, path}` of `datasets`.
    """

    path: Path | str
    schema: pa.Schema

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some rows.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`.
        """

    def where(self, index: int) -> str:
        """How errors name a row.

        Args:
            index: its number, from 0.

        Returns:
            Number and place.
        """
        return f"row {index} (the first is 0) of {self.path}"

    def column_type(self, column: str) -> pa.DataType:
        """Type of a column.

        Args:
            column: its name.

        Returns:
            The type of its values.

        Raises:
            DataFileError: if there is no such column; the message names those that are there.
        """
        names = self.schema.names
        if column not in names:
            raise DataFileError(f"{self.path} has no column {column!r}; choose one of: {', '.join(names) or '(none)'}")
        kind = self.schema.field(column).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def check_groups(self, columns: Sequence[str]) -> None:
        """Refuse data of which too much is read for one row; most kinds read a row alone.

        Args:
            columns: the columns that will be read.
        """
        del columns

    def check_indices(self, indices: Sequence[int]) -> None:
        """Refuse rows that are not there.

        Args:
            indices: numbers of rows.

        Raises:
            IndexError: for the first one that is not.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {index}")


class JoinedRows(Rows):
    """Several files of the same columns, one after the other.

    Attributes:
        path: the folder they are in.
        schema: columns that all of them have.
    """

    def __init__(self, path: Path, parts: Sequence[Rows]) -> None:
        """Join files.

        Args:
            path: the folder they are in.
            parts: at least one.
        """
        self.path, self._parts = path, list(parts)
        common = [f for f in parts[0].schema if all(f.name in part.schema.names for part in parts)]
        self.schema = pa.schema(common)
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    def where(self, index: int) -> str:
        """How errors name a row: by its own file."""
        part, place = self._place(index)
        return self._parts[part].where(place)

    def check_groups(self, columns: Sequence[str]) -> None:
        """Refuse files of which too much is read for one row."""
        for part in self._parts:
            part.check_groups(columns)

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some rows; those of one file are read together.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`.
        """
        self.check_indices(indices)
        places = [self._place(index) for index in indices]
        found: dict[tuple[int, int], Row] = {}
        for part in sorted({part for part, _ in places}):
            wanted = sorted({place for owner, place in places if owner == part})
            rows = self._parts[part].rows(wanted, columns)
            found |= {(part, place): row for place, row in zip(wanted, rows, strict=True)}
        return [found[place] for place in places]

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])


class ChosenRows(Rows):
    """A random choice of rows, none twice, that depends on seed and numbers alone.

    Attributes:
        path: where the rows are.
        schema: their columns.
    """

    def __init__(self, rows: Rows, count: int, seed: int) -> None:
        """Choose rows.

        Args:
            rows: what to choose from.
            count: how many to take, at most; all of them where there are fewer.
            seed: the run's seed.
        """
        self.path, self.schema = rows.path, rows.schema
        self._rows, self._count, self._seed = rows, min(count, len(rows)), seed

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def where(self, index: int) -> str:
        """How errors name a row: by its place among all."""
        return self._rows.where(self._place(index))

    def check_groups(self, columns: Sequence[str]) -> None:
        """Refuse data of which too much is read for one row."""
        self._rows.check_groups(columns)

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some rows.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`.
        """
        self.check_indices(indices)
        return self._rows.rows([self._place(index) for index in indices], columns)

    def _place(self, index: int) -> int:
        return shuffled(index, len(self._rows), self._seed, "samples")
