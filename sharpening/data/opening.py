"""Which kind of rows a path holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpening.data.rows import JoinedRows, Rows
from sharpening.data.source import DataFileError

SAVED = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` of `datasets` leaves in a folder."""
KINDS = (
    "a .parquet or .tar file, a folder of them, or one of images with metadata.jsonl or .csv, or saved by `datasets`"
)


def open_rows(path: str | Path) -> Rows:
    """Open training data by what is there; no row is read.

    Args:
        path: a Parquet file, a tar shard, or a folder: of images with a metadata file (`imagefolder`), of Parquet
            files, of tar shards, or what `save_to_disk` of `datasets` wrote.

    Returns:
        The rows.

    Raises:
        DataFileError: if there is nothing that can be read.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        return _open_folder(path)
    if path.suffix in (".tar", ".tgz") or path.name.endswith(".tar.gz"):
        from sharpening.data.tar import TarRows

        return TarRows(path)
    if path.suffix == ".parquet" or not path.exists():
        return _parquet(path)
    raise DataFileError(f"{path} is no data file; pass {KINDS}")


def _parquet(path: Path) -> Rows:
    from sharpening.data.parquet import RowFile

    return RowFile(path)


def _open_folder(folder: Path) -> Rows:
    if any((folder / name).exists() for name in SAVED):
        from sharpening.data.hub import DatasetRows

        return DatasetRows(str(folder))
    from sharpening.data.folder import FolderRows, metadata_files

    if found := metadata_files(folder):
        return _joined(folder, [FolderRows(file) for file in found])
    if files := _files(folder, ".tar"):
        return _joined(folder, [open_rows(file) for file in files])
    if files := _files(folder, ".parquet"):
        from sharpening.data.parquet import ReadCache, RowFile

        cache = ReadCache()
        return _joined(folder, [RowFile(file, cache) for file in files])
    raise DataFileError(f"{folder} holds no training data; pass {KINDS}")


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.rglob(f"*{suffix}") if not file.name.startswith("."))


def _joined(folder: Path, parts: Sequence[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else JoinedRows(folder, parts)
