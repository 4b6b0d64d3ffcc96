"""Parquet files read row by row in any order, and written so that they can be; memory does not grow with the file."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sharpening.data.rows import Row, Rows
from sharpening.data.source import DataFileError
from sharpening.evaluation.files import disk_errors

CACHE_BYTES = 256 * 2**20
"""Row groups read last are kept up to this size together; the last one always."""
GROUP_BYTES_LIMIT = 256 * 2**20
"""A row group above this is refused: it is read whole whenever one of its rows is."""
WRITTEN_GROUP_BYTES, WRITTEN_GROUP_ROWS = 4 * 2**20, 1000
"""A row group is closed at whichever comes first: small enough to read for one row, few enough for a short footer."""
READING = {"pre_buffer": False, "buffer_size": 2**20}
"""Arrow's default keeps every byte that it has read until the file is closed."""


OPEN_FILES = 64
"""Files read last that stay open; of a folder there may be thousands."""


class ReadCache:
    """Open files and row groups that were read last, of one file or of all files of a folder."""

    def __init__(self) -> None:
        """Start empty."""
        self._files: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self._tables: OrderedDict[tuple[Path, int, tuple[str, ...]], pa.Table] = OrderedDict()
        self.kept = 0  # bytes of the tables

    def __reduce__(self) -> tuple[type[ReadCache], tuple[()]]:
        return ReadCache, ()

    def file(self, path: Path) -> pq.ParquetFile:
        """An open file.

        Args:
            path: the file.

        Returns:
            It, opened if it is not open.
        """
        if path not in self._files:
            self._files[path] = pq.ParquetFile(path, **READING)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def table(self, path: Path, group: int, columns: tuple[str, ...]) -> pa.Table:
        """A row group.

        Args:
            path: the file.
            group: number of the row group.
            columns: the columns that are wanted.

        Returns:
            Those columns.
        """
        key = (path, group, columns)
        if key not in self._tables:
            self._tables[key] = self.file(path).read_row_group(group, columns=list(columns))
            self.kept += self._tables[key].nbytes
            while len(self._tables) > 1 and self.kept > CACHE_BYTES:
                self.kept -= self._tables.popitem(last=False)[1].nbytes
        self._tables.move_to_end(key)
        return self._tables[key]


class RowFile(Rows):
    """Rows of a Parquet file in any order, read by row groups.

    Opening one reads the file's footer alone. Where it is unpickled, the file is opened when it is first read.

    Attributes:
        path: the file, absolute, because actors run in other folders.
        schema: columns and their types.
    """

    def __init__(self, path: str | Path, cache: ReadCache | None = None) -> None:
        """Open a file.

        Args:
            path: a Parquet file.
            cache: what remembers the row groups read last; its own where none is shared.

        Raises:
            DataFileError: if the file is absent, unreadable or without rows.
        """  # noqa: DOC502
        self.path: Path = Path(path).absolute()
        self._cache = cache or ReadCache()
        with _read_errors(self.path):
            metadata = self._cache.file(self.path).metadata
            self.schema: pa.Schema = self._cache.file(self.path).schema_arrow
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if len(self) == 0:
            raise DataFileError(f"{self.path} holds no rows; put at least one example into it")

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    def check_groups(self, columns: Sequence[str]) -> None:
        """Refuse a file whose row groups are too large to be read for one row.

        Args:
            columns: the columns that will be read.

        Raises:
            DataFileError: if one is above `GROUP_BYTES_LIMIT`.
        """
        metadata = self._cache.file(self.path).metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.total_byte_size <= GROUP_BYTES_LIMIT:
                continue
            parts = (group.column(i) for i in range(group.num_columns))
            size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
            if size > GROUP_BYTES_LIMIT:
                raise DataFileError(
                    f"{self.path} has {size / 2**20:.0f} MiB in row group {number}, which would be read whole for one "
                    "example; write it again with small row groups (pyarrow: `row_group_size=16`)"
                )

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some rows.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`.

        Raises:
            IndexError: if there is no such row.
            DataFileError: if the file cannot be read.
        """  # noqa: DOC502
        self.check_indices(indices)
        found: dict[int, Row] = {}
        with _read_errors(self.path):
            for index in sorted(set(indices)):  # rows of one group together, so that each group is read once
                group = int(np.searchsorted(self._starts, index, side="right")) - 1
                table = self._cache.table(self.path, group, tuple(columns))
                found[index] = table.slice(index - int(self._starts[group]), 1).to_pylist()[0]
        return [found[index] for index in indices]


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataFileError(f"there is no file {path}; pass a Parquet file that every node can see") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataFileError(f"{path} is not a readable Parquet file ({reason}); write it again") from None
    except OSError as error:
        reason = (error.strerror or str(error)).splitlines()[0]
        raise DataFileError(f"{path} cannot be read ({reason}); check that it is a whole Parquet file") from None


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], required: Sequence[str] = ()) -> None:
    """Write a Parquet file in one step: to a neighbour first, then renamed; memory does not grow with the rows.

    Args:
        path: the file; its folder exists.
        rows: at least one; all have the columns of the first. A uint8 array `[H, W, 3]` becomes the bytes of a PNG.
        required: columns that must be among them.

    Raises:
        ValueError: if there is no row, or if a required column is missing.
        DiskFull: if there is no room; nothing is left behind.
    """  # noqa: DOC502
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        try:
            _write_groups(partial, _groups(rows), required)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _write_groups(path: Path, groups: Iterator[list[Row]], required: Sequence[str]) -> None:
    first = next(groups, None)
    if first is None:
        raise ValueError("there are no rows to write; pass at least one")
    table = pa.Table.from_pylist(first)
    if missing := [name for name in required if name not in table.column_names]:
        raise ValueError(f"the rows lack {', '.join(missing)}; add them to every row")
    # Images are compressed already, differ from one another, and would fill the footer as statistics.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=len(table))
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema=table.schema), row_group_size=len(group))


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        encoded = {name: _png(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
        group.append(encoded)
        size += sum(len(value) for value in encoded.values() if isinstance(value, bytes))
        if size >= WRITTEN_GROUP_BYTES or len(group) == WRITTEN_GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
