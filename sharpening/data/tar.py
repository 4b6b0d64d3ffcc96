"""Tar shards in the layout of WebDataset: files of one example share their name up to the first dot.

Opening a shard reads its headers alone and keeps where each file's bytes are, so that any example can be read at once.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from sharpening.data.rows import Row, Rows
from sharpening.data.source import DataFileError

IMAGES = ("jpg", "jpeg", "png", "webp")
BLOCK = 512
"""Tar files consist of blocks of so many bytes."""
IMAGE, TEXT = "image", "text"
"""Columns of files that have no name but their kind: `0001.jpg`, `0001.txt`."""


def column_of(extension: str) -> tuple[str, str] | None:
    """Which column a file of an example stands in.

    Args:
        extension: what follows the first dot of its name, such as `jpg`, `image_w.png`, `txt`.

    Returns:
        (column, kind): `jpg` is ("image", "image"), `image_w.png` ("image_w", "image"), `txt` ("text", "text"),
        `caption.txt` ("caption", "text"), `json` ("", "json"), whose fields are columns; `None` for all others.
    """
    name, _, kind = extension.lower().rpartition(".")
    if kind in IMAGES:
        return name or IMAGE, "image"
    if kind == "txt":
        return name or TEXT, "text"
    return ("", "json") if kind == "json" and not name else None


class TarRows(Rows):
    """Examples of a tar shard, in the order of their first files.

    The index (16 bytes a file) travels when this is pickled.

    Attributes:
        path: the shard, absolute.
        schema: `image` (bytes) and `text`, as far as they are there, and the texts of the first `.json`.
    """

    def __init__(self, path: str | Path) -> None:
        """Index a shard.

        Args:
            path: an uncompressed tar file.

        Raises:
            DataFileError: if it cannot be read to its end, or holds no example.
        """
        self.path: Path = Path(path).absolute()
        found, kinds, self._count = self._index()
        if not self._count:
            raise DataFileError(
                f"{self.path} holds no example; put files such as 0001.jpg and 0001.txt into it, with the same name"
            )
        self._places = found
        fields = [pa.field(name, pa.binary() if kind == "image" else pa.string()) for name, kind in kinds.items()]
        self._fields = self._texts_of_json() if "" in found else []
        known = {field.name for field in fields}
        self.schema = pa.schema(
            [f for f in fields if f.name] + [pa.field(n, pa.string()) for n in self._fields if n not in known]
        )

    def __len__(self) -> int:
        """Number of examples."""
        return self._count

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some examples; of each no file is read but those of the columns.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`; what an example lacks is `None`.

        Raises:
            DataFileError: if the shard cannot be read.
        """
        self.check_indices(indices)
        try:
            with self.path.open("rb", buffering=0) as file:
                return [{column: self._value(file, index, column) for column in columns} for index in indices]
        except OSError as error:
            raise DataFileError(f"{self.path} cannot be read ({error.strerror}); check that it is there") from None

    def _value(self, file: BinaryIO, index: int, column: str) -> bytes | str | None:
        contents = self._bytes(file, index, column) if column in self._places else None
        if contents is not None and pa.types.is_string(self.column_type(column)):
            return contents.decode("utf-8", errors="replace")
        if contents is None and column in self._fields:
            value = self._json(file, index).get(column)
            return value if isinstance(value, str) else None
        return contents

    def _json(self, file: BinaryIO, index: int) -> dict[str, Any]:
        """Fields of an example's `.json`; none where it is absent or broken."""
        try:
            value = json.loads(self._bytes(file, index, "") or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _texts_of_json(self) -> list[str]:
        first = int(np.flatnonzero(self._places[""][1])[0])
        with self.path.open("rb", buffering=0) as file:
            return [name for name, value in self._json(file, first).items() if isinstance(value, str)]

    def _bytes(self, file: BinaryIO, index: int, column: str) -> bytes | None:
        offsets, sizes = self._places[column]
        if not sizes[index]:
            return None
        file.seek(int(offsets[index]))
        return file.read(int(sizes[index]))

    def _index(self) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, str], int]:
        """Offset and size of every example's file by column, the columns' kinds, and the number of examples."""
        numbers: dict[str, int] = {}
        files: dict[str, dict[int, tuple[int, int]]] = {}
        kinds: dict[str, str] = {}
        try:
            if self.path.stat().st_size % BLOCK:
                raise tarfile.ReadError("it ends within a block")
            with tarfile.open(self.path, "r:") as archive:
                described = vars(archive)["members"]
                while (member := archive.next()) is not None:
                    described.clear()  # else tarfile keeps a description of every file
                    folder, _, name = member.name.rpartition("/")
                    stem, dot, extension = name.partition(".")
                    place = column_of(extension)
                    if not member.isreg() or member.issparse() or not stem or not dot or place is None:
                        continue
                    number = numbers.setdefault(f"{folder}/{stem}", len(numbers))
                    files.setdefault(place[0], {})[number] = (member.offset_data, member.size)
                    kinds[place[0]] = place[1]
        except FileNotFoundError:
            raise DataFileError(f"there is no file {self.path}; pass a tar shard that every node can see") from None
        except tarfile.TarError as error:
            raise DataFileError(
                f"{self.path} is not a whole uncompressed tar file ({error}); write it again, without compression"
            ) from None
        except OSError as error:
            raise DataFileError(f"{self.path} cannot be read ({error.strerror}); check its permissions") from None
        return {column: _arrays(found, len(numbers)) for column, found in files.items()}, kinds, len(numbers)


def _arrays(found: dict[int, tuple[int, int]], count: int) -> tuple[np.ndarray, np.ndarray]:
    offsets, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    numbers = np.fromiter(found, np.int64, len(found))
    offsets[numbers] = [offset for offset, _ in found.values()]
    sizes[numbers] = [size for _, size in found.values()]
    return offsets, sizes
