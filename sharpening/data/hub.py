"""Data sets of the library `datasets`: by name on the Hugging Face hub, as a folder of files, or saved to disk.

The library is an optional extra and is imported when a data set is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sharpening.data.rows import Row, Rows
from sharpening.data.source import DataFileError

SPLIT = "train"


class DatasetRows(Rows):
    """Rows of a data set, mapped into memory from Arrow files; where this is unpickled, it is opened again.

    Attributes:
        path: its name, or the absolute folder.
        schema: columns and their types; images are the struct `{bytes, path}`.
        config: its configuration, `None` where it has one only.
    """

    def __init__(self, name: str, config: str | None = None) -> None:
        """Open a data set, its split `train` where it has splits; one on the hub is downloaded into the hub's cache.

        Args:
            name: a name on the hub, a folder of files that `load_dataset` understands, or one that `save_to_disk`
                wrote.
            config: its configuration; `None` where it has one only.

        Raises:
            DataFileError: if the library is not installed, or the data set cannot be found or read.
        """  # noqa: DOC502
        folder = Path(name).expanduser()
        self.path = str(folder.absolute()) if folder.is_dir() else name
        self.config = config
        self._data: Any = None
        self._views: dict[tuple[str, ...], Any] = {}
        data = self._opened()
        self.schema: pa.Schema = data.features.arrow_schema.remove_metadata()
        self._count = len(data)
        if not self._count:
            raise DataFileError(f"{self.path} holds no rows; pass a data set with at least one example")

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None, "_views": {}}

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Some rows.

        Args:
            indices: their numbers, from 0; they may repeat.
            columns: the columns to read.

        Returns:
            The rows, in the order of `indices`; images as files, not decoded.
        """
        self.check_indices(indices)
        key = tuple(columns)
        if key not in self._views:
            self._views[key] = self._opened().select_columns(list(columns))
        found = self._views[key][[int(index) for index in indices]]
        return [dict(zip(key, values, strict=True)) for values in zip(*(found[name] for name in key), strict=True)]

    def _opened(self) -> Any:
        if self._data is None:
            try:
                import datasets
            except ImportError:
                raise DataFileError(
                    f"{self.path} needs the package datasets; pip install 'trajectory-sharpening[datasets]'"
                ) from None
            try:
                data = self._load(datasets)
            except DataFileError:
                raise
            except Exception as error:  # loaders raise whatever a file or the network leads them to
                raise DataFileError(_told(self.path, error)) from error
            images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
            for name in images:
                data = data.cast_column(name, datasets.Image(decode=False))
            self._data = data
        return self._data

    def _load(self, datasets: Any) -> Any:
        folder = Path(self.path)
        if not any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(str(self.path), self.config, split=SPLIT)
        data = datasets.load_from_disk(self.path)
        if isinstance(data, datasets.DatasetDict):
            if SPLIT not in data:
                splits = ", ".join(data)
                raise DataFileError(
                    f"{self.path} has no split '{SPLIT}', only {splits}; pass the folder of one of them"
                )
            data = data[SPLIT]
        return data


def _told(name: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) < 200 else f"{reason[:200]}…"
    return (
        f"{name} cannot be opened as a data set ({reason}); check name and configuration, the network and HF_TOKEN, "
        "or pass a folder"
    )
