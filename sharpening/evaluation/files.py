"""Writing files so that a crash or a full disk leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """There is no room left; what was written before is intact."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk into `DiskFull`; other errors pass.

    Args:
        path: what is being written, for the message.

    Yields:
        Nothing.

    Raises:
        DiskFull: if the device or the quota is full.
        OSError: whatever else the operating system says.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFull(error.errno, "the disk is full; make room and resume", str(path)) from error


def write_bytes(path: Path, contents: bytes) -> None:
    """Write a file in one step: to a neighbour first, flushed to the device, then renamed.

    Args:
        path: the file; its folder exists.
        contents: all of it.

    Raises:
        DiskFull: if there is no room; the old file is intact and nothing else is left behind.
    """  # noqa: DOC502
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy numbers become Python's, what is not finite becomes `None`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a JSON object in one step, indented."""
    write_bytes(path, (json.dumps(plain(contents), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table in one step.

    Args:
        path: the file.
        columns: equally long columns by name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), buffer)
    write_bytes(path, buffer.getvalue())


def row_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; a row that lacks a key has `None` there.

    Args:
        rows: the rows.

    Returns:
        Columns of all keys, in order of appearance.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
