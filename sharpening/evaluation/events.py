"""`events.jsonl`: what happened in a run besides its updates, a line each, for programs and for the report page."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sharpening.evaluation.files import plain

EVENTS = "events.jsonl"

Event = dict[str, Any]
logger = logging.getLogger(__name__)


class EventLog:
    """The growing events of a run; a run that goes on appends to them.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._cut = _cut_short(self._path)

    def add(self, text: str, kind: str = "note", **facts: Any) -> None:
        """Add an event. A disk that refuses loses the line, not the run: what must be kept is in the metrics.

        Args:
            text: one line for people.
            kind: what the event is about, one word.
            **facts: further fields for programs, such as `update`.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": time, "kind": kind, "text": text, **plain(facts)}, ensure_ascii=False)
        try:
            with self._path.open("ab") as file:
                # A line that a kill cut short ends here, so that this one is whole.
                file.write(("\n" * self._cut + line + "\n").encode())
            self._cut = False
        except OSError as error:
            logger.warning("an event was not written to %s: %s", self._path, error)


def _cut_short(path: Path) -> bool:
    """Whether a file's last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_events(folder: Path) -> list[Event]:
    """Events of a run, also while it goes on or after it was killed.

    Args:
        folder: the run folder.

    Returns:
        `time` (UTC, ISO 8601), `kind`, `text` and further fields of each, in order; none where there is no file. Lines
        that a kill cut short are left out.
    """
    path = folder / EVENTS
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"time", "kind", "text"} <= event.keys():
            found.append(event)
    return found
