"""Telling a run's trackers what happens: metrics of updates, held-out looks, sample grids, the final table.

Everything is read off what the run writes anyway. Nothing here waits for a tracker but `close`, and that for a limited
time.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rayjobs.options import JobOptions
from rayjobs.runtime.look_grids import look_name
from rayjobs.tracking.base import TrackedRun, Tracker
from rayjobs.tracking.worker import Call, Place, Worker, warning
from sharpening.evaluation.results import Result, result_numbers, result_rows
from sharpening.evaluation.run_folder import SUMMARY, RunFolder

TRACKERS = {
    "tensorboard": "rayjobs.tracking.tensorboard_files:TensorBoard",
    "wandb": "rayjobs.tracking.weights_and_biases:WeightsAndBiases",
    "mlflow": "rayjobs.tracking.mlflow_runs:MLflow",
}
"""Import path of each tracker's class, by the name users give it."""
PATIENCE_S = 60.0  # for all trackers together, once the run has ended

Row = Mapping[str, Any]


def open_trackers(options: JobOptions, folder: RunFolder, say: Callable[[str], None]) -> "Trackers":
    """Start the run's trackers; none is waited for.

    Args:
        options: The run's options.
        folder: The run folder.
        say: Shows a line to the user.

    Returns:
        The trackers; none where none is named.
    """
    place = folder.path.resolve() / options.logging_dir
    workers = []
    for name in options.trackers:
        own = place / name
        own.mkdir(parents=True, exist_ok=True)
        run = TrackedRun(folder.path.name, options.tracker_project_name, options.config(), own)
        workers.append(Worker(name, _maker(name), run, place / f"{name}.json", say))
    return Trackers(workers, say)


def _maker(name: str) -> Callable[[], Tracker]:
    def make() -> Tracker:
        module, _, attribute = TRACKERS[name].partition(":")
        return getattr(import_module(module), attribute)()

    return make


class Trackers:
    """The trackers of one run.

    Args:
        workers: A thread each, not started yet.
        say: Shows a line to the user.

    Attributes:
        updates: Updates whose metrics every tracker has been told.
    """

    def __init__(self, workers: Sequence[Worker], say: Callable[[str], None]) -> None:
        self._workers, self._say = workers, say
        self.updates = min((worker.place.rows for worker in workers), default=0)
        for worker in workers:
            worker.start()

    def __bool__(self) -> bool:
        return bool(self._workers)

    def _put(self, call: Call | None) -> None:
        for worker in self._workers:
            worker.put(call)

    def rows(self, rows: Sequence[Row]) -> None:
        """Tell the metrics of updates. Updates that are made again after a restart are not told twice.

        Args:
            rows: Rows of metrics in order, from update `updates` on.
        """
        self._put(lambda tracker, place: _tell_rows(tracker, place, rows))
        self.updates = max([self.updates, *(row["update"] + 1 for row in rows)])

    def looks(self, rows: Sequence[Row], folder: Path) -> None:
        """Tell looks at held-out prompts; those that were told before are left out.

        Args:
            rows: The rows of `validation.parquet` so far.
            folder: The run folder, with a sample grid for each that has one.
        """
        told = list(rows)
        self._put(lambda tracker, place: _tell_looks(tracker, place, told, folder))

    def own(self, image: Path, numbers: Row, step: int) -> None:
        """Tell what the user's own prompts look like; a grid that was told before is left out.

        Args:
            image: The grid.
            numbers: Mean rewards of its images.
            step: Updates made.
        """
        told = dict(numbers)
        self._put(lambda tracker, place: _tell_own(tracker, place, image, told, step))

    def sample(self, image: Path, step: int) -> None:
        """Tell a sample grid before or after training.

        Args:
            image: The grid, which need not exist.
            step: Updates made.
        """
        self._put(lambda tracker, place: _tell_sample(tracker, place, image, step))

    def results(self, folder: Path) -> None:
        """Tell the final table.

        Args:
            folder: The run folder, with its `summary.json`.
        """
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        rows, numbers, step = result_rows(summary), result_numbers(summary), int(summary["updates"])
        if rows:
            self._put(lambda tracker, _: tracker.log(_named("final", numbers), step))
            self._put(lambda tracker, _: tracker.table("final/results", Result._fields, rows, step))

    def close(self, completed: bool) -> None:
        """End the trackers, and wait for them for a limited time.

        Args:
            completed: Whether the run made all its updates.
        """
        self._put(lambda tracker, _: tracker.finish(completed))
        self._put(None)
        deadline = time.monotonic() + PATIENCE_S
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                name = worker.name.removeprefix("tracker-")
                self._say(warning(name, f"it took longer than {PATIENCE_S:g} s to end"))


def _tell_rows(tracker: Tracker, place: Place, rows: Sequence[Row]) -> None:
    for row in rows:
        if row["update"] >= place.rows:
            numbers = {name: value for name, value in row.items() if name != "update"}
            tracker.log(_named("train", numbers), row["update"] + 1)
            place.rows = row["update"] + 1


def _tell_looks(tracker: Tracker, place: Place, rows: Sequence[Row], folder: Path) -> None:
    for row in rows:
        step = int(row["update"])
        if step <= place.look:
            continue
        numbers = {name: value for name, value in row.items() if name not in ("update", "training_reward")}
        tracker.log(_named("held_out", numbers), step)
        image = folder / look_name(step)
        if image.is_file():
            tracker.image("samples/held_out", image, f"held-out prompts after update {step}", step)
        place.look = step


def _tell_sample(tracker: Tracker, place: Place, image: Path, step: int) -> None:
    if image.is_file() and image.name not in place.images:
        phase = image.stem.removeprefix("samples_")
        tracker.image(f"samples/{phase}", image, f"benchmark prompts, {phase}", step)
        place.images.append(image.name)


def _tell_own(tracker: Tracker, place: Place, image: Path, numbers: Row, step: int) -> None:
    if image.name not in place.images:
        tracker.log(_named("own_prompts", numbers), step)
        tracker.image("samples/own_prompts", image, f"your own prompts after update {step}", step)
        place.images.append(image.name)


def _named(group: str, values: Row) -> dict[str, float]:
    """The numbers among some values, under the names that trackers have them."""
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
    return {f"{group}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
