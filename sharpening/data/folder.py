"""Images in a folder with a metadata file beside them: the `imagefolder` convention of `datasets`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sharpening.data.rows import Row, Rows
from sharpening.data.source import DataFileError

NAMES = ("metadata.jsonl", "metadata.csv")
IMAGE = "image"
"""Column of the images that `file_name` names; `NAME_file_name` names those of column NAME."""
FILE_NAME = "file_name"
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def metadata_files(folder: Path) -> list[Path]:
    """Metadata files of a folder of images.

    Args:
        folder: the folder.

    Returns:
        The folder's own; else that of its split `train`; else those of its subfolders. One a folder, in order.
    """
    for places in ([folder], [folder / "train"], sorted(place for place in folder.iterdir() if place.is_dir())):
        found = [next((place / name for name in NAMES if (place / name).is_file()), None) for place in places]
        if any(found):
            return [file for file in found if file is not None]
    return []


class FolderRows(Rows):
    """Images of a folder, a line of its metadata file each; an image file is read when it is asked for.

    The metadata stay in memory. Where this is unpickled, they are read again.

    Attributes:
        path: the metadata file, absolute.
        schema: columns and their types; `file_name` has become `image`.
    """

    def __init__(self, path: Path) -> None:
        """Read the metadata.

        Args:
            path: a `metadata.jsonl` (a JSON object a line) or `metadata.csv` (with a header) that has a column
                `file_name`: paths relative to its folder.

        Raises:
            DataFileError: if it cannot be read, has no such column or no rows.
        """  # noqa: DOC502
        self.path: Path = path.absolute()
        table = self._read()
        self.schema: pa.Schema = table.schema
        self._count = len(table)
        self._table: pa.Table | None = table

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some rows; images are read by whoever needs them.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`; images as `{bytes, path}` with the path alone.
        """
        self.check_indices(indices)
        if self._table is None:
            self._table = self._read()
        return self._table.select(list(columns)).take(pa.array(indices, pa.int64())).to_pylist()

    def _read(self) -> pa.Table:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                entries = list(csv.DictReader(file) if self.path.suffix == ".csv" else _objects(self.path, file))
        except UnicodeDecodeError as error:
            raise DataFileError(f"{self.path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
        except csv.Error as error:
            raise DataFileError(f"{self.path} is no CSV file ({error}); write it again") from None
        except OSError as error:
            raise DataFileError(f"{self.path} cannot be read ({error.strerror}); check its permissions") from None
        if not entries:
            raise DataFileError(f"{self.path} holds no rows; put at least one image into it")
        return self._table_of(entries)

    def _table_of(self, entries: list[dict[str, Any]]) -> pa.Table:
        names = [name for name in dict.fromkeys(name for entry in entries for name in entry) if isinstance(name, str)]
        arrays: dict[str, pa.Array] = {}
        for name in names:
            values = [entry.get(name) for entry in entries]
            if name == FILE_NAME or name.endswith(f"_{FILE_NAME}"):
                column = name.removesuffix(FILE_NAME).removesuffix("_") or IMAGE
                arrays[column] = pa.array([self._file(value) for value in values], FILE)
                continue
            try:
                arrays[name] = pa.array(values)
            except pa.ArrowException:  # values of several kinds: no caption, and nobody else reads it
                continue
        if not any(array.type == FILE for array in arrays.values()):
            raise DataFileError(
                f"{self.path} has no column {FILE_NAME!r}, only {', '.join(names)}; name the images in {FILE_NAME!r}"
            )
        return pa.table(arrays)

    def _file(self, name: Any) -> dict[str, Any] | None:
        """An image's place, `None` where the row names none inside the folder."""
        if not isinstance(name, str) or not name or ".." in Path(name).parts or Path(name).is_absolute():
            return None
        return {"bytes": None, "path": str(self.path.parent / name)}


def _objects(path: Path, lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise DataFileError(f"{path} line {number} is not JSON; write one JSON object a line") from None
        if not isinstance(entry, dict):
            raise DataFileError(f"{path} line {number} is not a JSON object; write one JSON object a line")
        yield entry
