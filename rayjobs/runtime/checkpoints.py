"""Checkpoints on disk: written aside and renamed when complete, so that a folder called `checkpoint-…` is whole."""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpening.ema import WeightAverage

FOLDER = "checkpoints"
STATE = "trainer_state.json"
METRICS = "metrics.json"
ROUND = "round.safetensors"
AVERAGE = "ema.safetensors"
_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint says about itself.

    Attributes:
        update: Updates applied, which is also the weights' version.
        num_learners: Learner ranks that wrote it.
        versions: Weights versions that lie beside the engine's state, for stale rollouts.
    """

    update: int
    num_learners: int
    versions: list[int]


def path_for(folder: Path, update: int) -> Path:
    """Where a complete checkpoint lies.

    Args:
        folder: The run's checkpoint folder.
        update: Updates applied.

    Returns:
        The path.
    """
    return folder / f"checkpoint-{update:06d}"


def partial_for(folder: Path, update: int) -> Path:
    """Where a checkpoint is written.

    Args:
        folder: The run's checkpoint folder.
        update: Updates applied.

    Returns:
        The path.
    """
    return folder / f"partial-{update:06d}"


def complete(folder: Path, state: TrainerState, rows: list[dict[str, Any]]) -> Path:
    """Make a checkpoint count, once every rank has written its part.

    Args:
        folder: The run's checkpoint folder.
        state: What the checkpoint says about itself.
        rows: Metrics of the updates before it.

    Returns:
        The checkpoint.
    """
    partial, final = partial_for(folder, state.update), path_for(folder, state.update)
    (partial / METRICS).write_text(json.dumps(rows), encoding="utf-8")
    (partial / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    discard(final)
    partial.rename(final)
    return final


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, which counts no more from the first moment on: nobody copies or reads half of it.

    Args:
        checkpoint: One that may or may not be there.
    """
    with suppress(OSError):
        (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def read(checkpoint: Path) -> tuple[TrainerState, list[dict[str, Any]]]:
    """What a checkpoint says about itself.

    Args:
        checkpoint: A complete one.

    Returns:
        Its state and the metrics of the updates before it.
    """
    state = TrainerState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    return state, json.loads((checkpoint / METRICS).read_text(encoding="utf-8"))


def keep_average(folder: Path, average: "WeightAverage | None") -> None:
    """Keep the average of the weights with a checkpoint.

    Args:
        folder: The checkpoint, while it is written.
        average: The average, where the run has one.
    """
    if average is not None:
        average.save(folder / AVERAGE)


def average(checkpoint: Path, decay: float) -> "WeightAverage | None":
    """The average of the weights that a checkpoint keeps.

    Args:
        checkpoint: A complete one.
        decay: The average's largest decay.

    Returns:
        The average; `None` where there is none.
    """
    from sharpening.ema import WeightAverage

    path = checkpoint / AVERAGE
    return WeightAverage.load(path, decay) if path.exists() else None


def keep_round(folder: Path, state: bytes) -> None:
    """Keep the state of a method in rounds with a checkpoint.

    Args:
        folder: The checkpoint, while it is written.
        state: The state; nothing is kept of none.
    """
    if state:
        (folder / ROUND).write_bytes(state)


def round_state(checkpoint: Path) -> bytes:
    """The state of a method in rounds.

    Args:
        checkpoint: A complete checkpoint.

    Returns:
        The state; empty where no round but the first had begun.
    """
    path = checkpoint / ROUND
    return path.read_bytes() if path.exists() else b""


def listed(folder: Path) -> list[Path]:
    """Complete checkpoints.

    Args:
        folder: The run's checkpoint folder.

    Returns:
        Oldest first.
    """
    found = [path for path in folder.glob("checkpoint-*") if is_name(path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: update_of(path.name))


def is_name(name: str) -> bool:
    """Whether something is called as complete checkpoints are."""
    return _NAME.fullmatch(name) is not None


def update_of(name: str) -> int:
    """Updates that a checkpoint of some name has had applied."""
    return int(name.rpartition("-")[2])


def prune(folder: Path, keep: int | None) -> None:
    """Delete all but the newest checkpoints, and whatever was left half written.

    Args:
        folder: The run's checkpoint folder.
        keep: How many to keep; all when `None`.
    """
    for partial in folder.glob("partial-*"):
        shutil.rmtree(partial, ignore_errors=True)
    for old in listed(folder)[:-keep] if keep else []:
        discard(old)
