"""What the report page is made from: the files of a run folder, also of a run that goes on or that died."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rayjobs.errors import JobError
from sharpening.evaluation.events import EVENTS, read_events
from sharpening.evaluation.metrics import read_metrics
from sharpening.evaluation.run_folder import CONFIG, COST, EVALUATION, OWN_PROMPTS, SUMMARY, VALIDATION, VERSIONS

Row = dict[str, Any]
Found = TypeVar("Found")


class PageError(JobError):
    """The page cannot be made; the message says which file is wrong and what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Contents:
    """A run folder's files, read.

    Attributes:
        folder: The run folder.
        config: Every option, resolved.
        versions: What the run ran on; empty where the file is missing.
        rows: One an update.
        looks: One a look at held-out prompts.
        own: One an image of the user's own prompts.
        evaluation: One a prompt, phase and guidance scale.
        cost: The cost account; empty where the file is missing.
        summary: What a finished run found; empty before.
        events: What happened besides updates.
    """

    folder: Path
    config: Row
    versions: Row
    rows: list[Row]
    looks: list[Row]
    own: list[Row]
    evaluation: list[Row]
    cost: Row
    summary: Row
    events: list[Row]

    @property
    def updates(self) -> int:
        """Updates made."""
        return int(self.rows[-1]["update"]) + 1 if self.rows else 0

    @property
    def planned(self) -> int | None:
        """Updates in the whole run, where the configuration says so."""
        planned = self.config.get("max_train_steps")
        return planned if isinstance(planned, int) else None

    @property
    def guidance_scale(self) -> float:
        """The guidance that the model was trained for."""
        return float(self.config.get("guidance_scale", 1.0))


def read_contents(folder: Path) -> Contents:
    """Read a run folder.

    Args:
        folder: The folder.

    Returns:
        What it holds; what is not there yet is empty.

    Raises:
        PageError: If it is no folder of a fine-tuning run, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise PageError(f"there is no folder {folder}; pass the run folder that a run has printed")
    if not (folder / CONFIG).is_file():
        raise PageError(f"{folder} is no run folder, it has no {CONFIG}; pass the folder that a run has printed")
    config = _json(folder / CONFIG)
    if not isinstance(config.get("method"), str):
        raise PageError(
            f"{folder / CONFIG} names no method; pass the folder of a fine-tuning run, a search has its own table"
        )
    return Contents(
        folder=folder,
        config=config,
        versions=_json(folder / VERSIONS),
        rows=_found(lambda: read_metrics(folder), folder / "metrics.jsonl") or [],
        looks=_parquet(folder / VALIDATION, ("update", "reward", "facts")),
        own=_parquet(folder / OWN_PROMPTS, ("update", "reward")),
        evaluation=_parquet(folder / EVALUATION, ("index", "prompt", "category", "phase", "guidance_scale", "reward")),
        cost=_json(folder / COST),
        summary=_json(folder / SUMMARY),
        events=_found(lambda: read_events(folder), folder / EVENTS) or [],
    )


def _found(read: Callable[[], Found], path: Path) -> Found | None:
    """What a reader gives, `None` where there is no file; whatever is wrong with it becomes one sentence."""
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no file")  # a device could be read for ever
        return read()
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.removeprefix(f"{path} ")
        raise PageError(f"{path} cannot be read ({reason}); restore it, or move it away to leave it out") from error


def _json(path: Path) -> Row:
    def read() -> Row:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        return found

    return _found(read, path) or {}


def _parquet(path: Path, columns: tuple[str, ...]) -> list[Row]:
    """Rows of a table that must have some columns."""

    def read() -> list[Row]:
        import pyarrow.parquet as pq

        with path.open("rb") as file:  # a path that pyarrow opens itself is memory-mapped: a run may be replacing it
            table = pq.read_table(file)
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise ValueError(f"it has no column '{missing[0]}'")
        return table.to_pylist()

    return _found(read, path) or []
