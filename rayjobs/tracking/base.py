"""What a tracker is to a run: a place that takes numbers, pictures and tables, and is told when the run ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Cell = str | float


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is started with.

    Attributes:
        name: The run's name.
        project: What the run is filed under.
        config: The run's resolved options.
        folder: Where the tracker may keep files; it exists.
        identity: What `start` answered when an earlier start of the run was tracked; empty the first time.
    """

    name: str
    project: str
    config: Mapping[str, Any]
    folder: Path
    identity: Mapping[str, str] = field(default_factory=dict)


class Tracker(Protocol):
    """One tracker, used by one thread. Any method may raise whatever its library does.

    A step is the number of updates made. Names have the form `group/metric`.
    """

    def start(self, run: TrackedRun) -> dict[str, str]:
        """Begin, or go on with an earlier start's run.

        Args:
            run: The run.

        Returns:
            What finds the tracker's run again; no secret, it is kept in the run folder.
        """
        ...

    def where(self) -> str:
        """One line for the user: where to look."""
        ...

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take numbers.

        Args:
            numbers: By name.
            step: Updates made.
        """
        ...

    def image(self, name: str, path: Path, caption: str, step: int) -> None:
        """Take a picture.

        Args:
            name: Its name.
            path: A PNG.
            caption: What it shows.
            step: Updates made.
        """
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Take a table.

        Args:
            name: Its name.
            columns: Headings.
            rows: Cells of each row.
            step: Updates made.
        """
        ...

    def finish(self, completed: bool) -> None:
        """End.

        Args:
            completed: Whether the run made all its updates.
        """
        ...


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in Markdown.

    Args:
        columns: Headings.
        rows: Cells of each row.

    Returns:
        Lines, the last one without an end.
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(cell: Cell) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
