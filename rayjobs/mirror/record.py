"""What of a run folder its address has, kept in the folder so that a run that goes on copies nothing twice."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sharpening.evaluation.files import write_json


class Stamp(NamedTuple):
    """How a file is known again.

    Attributes:
        size: Bytes.
        changed: Nanoseconds since 1970.
    """

    size: int
    changed: int


def stamp(path: Path) -> Stamp | None:
    """A file's stamp.

    Args:
        path: The file.

    Returns:
        The stamp; `None` where there is no such file.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns)


class Record:
    """Files that an address has, by name.

    Args:
        path: Where the record is kept.
        address: The address; a record of another one counts for nothing.
    """

    def __init__(self, path: Path, address: str) -> None:
        self._path, self._address = path, address
        self._files: dict[str, Stamp] = {}
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["address"] == address:
                self._files = {name: Stamp(*values) for name, values in known["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._files = {}

    def has(self, name: str, found: Stamp) -> bool:
        """Whether the address has a file as it is now.

        Args:
            name: Its name.
            found: Its stamp.

        Returns:
            Whether it has.
        """
        return self._files.get(name) == found

    def note(self, name: str, found: Stamp) -> None:
        """The address has a file.

        Args:
            name: Its name.
            found: Its stamp when it was copied.
        """
        self._files[name] = found

    def compare(self, there: Mapping[str, int]) -> list[str]:
        """Forget files that the address has lost, or has otherwise.

        Args:
            there: Sizes of what it has, by name.

        Returns:
            Names of those.
        """
        lost = [name for name, found in self._files.items() if there.get(name) != found.size]
        for name in lost:
            del self._files[name]
        return lost

    def forget(self, start: str) -> None:
        """The address may have files no more.

        Args:
            start: What their names begin with.
        """
        self._files = {name: found for name, found in self._files.items() if not name.startswith(start)}

    def write(self) -> None:
        """Keep the record."""
        self._path.parent.mkdir(exist_ok=True)
        write_json(self._path, {"address": self._address, "files": {k: list(v) for k, v in self._files.items()}})
