"""One run of a sweep, inside Ray Tune's trial: the whole job, told where its processes may be."""

import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rayjobs.options import JobOptions
from rayjobs.resume import LATEST
from rayjobs.runtime import checkpoints
from rayjobs.runtime.reservations import Reservations
from rayjobs.sweeping.space import Point, Space, run_name
from rayjobs.validation import validate

METRIC, TIME = "reward", "update"
"""What Tune is told: mean reward of held-out images after so many optimiser updates."""
POINT, SEED = "point", "seed"
SUMMARY = "summary.json"
REPORTING = threading.Event()
"""Set while the run of this process waits for what Tune says to a report."""
END_S = 300.0  # for a run that Tune ends: its update, a checkpoint, its page


@dataclass(frozen=True)
class TrialSpec:
    """What all trials of a sweep share.

    Attributes:
        space: what is varied over the job's options.
        folder: the runs' folders lie in it.
        served: the rewards that all runs ask, as `--served_rewards` has them.
        reserved: CPUs and GPUs of each process of a run.
        working: folder that relative paths of the job's options begin at.
    """

    space: Space
    folder: str
    served: str
    reserved: Reservations
    working: str


def trainable_of(spec: TrialSpec) -> type:
    """What Tune runs.

    A function's trainable does not wait for the function when Tune ends it, and its process ends with it. Then what
    the learners reserved stays reserved: it is Ray Train's, whose own remedy (`PlacementGroupCleaner`) needs a
    dashboard and a machine with one Ray. So this one waits until the run has ended in good order.

    Args:
        spec: what all trials share.

    Returns:
        A class of Tune's.
    """
    from ray.train._internal.session import get_session
    from ray.tune.trainable import wrap_function

    class Trial(wrap_function(partial(trial, spec=spec))):  # type: ignore[misc]
        def cleanup(self) -> None:
            run = get_session().training_thread
            super().cleanup()  # a report that waits for an answer gets SystemExit
            wait_for_end(run)

    return Trial


def wait_for_end(run: threading.Thread) -> None:
    """Wait for a run that Tune has ended, if that is what it heard.

    Args:
        run: The trial's thread.
    """
    if REPORTING.is_set():
        run.join(END_S)


def trial(config: Mapping[str, Any], spec: TrialSpec) -> None:
    """Run the job at one point.

    A trial that is started again, after a failure or with the sweep, goes on from its newest checkpoint, and one whose
    run is whole only tells its result once more.

    Args:
        config: `point`, the values that are varied by name (or those values themselves), and `seed`.
        spec: what all trials share.
    """
    from filelock import FileLock
    from ray import tune

    from rayjobs.runtime.driver import run

    os.chdir(spec.working)
    point, seed = of_config(config)
    folder = Path(spec.folder) / run_name(point, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Optuna may ask for a point twice: the second trial of it waits for the first one, and tells the same.
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # names have points in them
        if not (folder / SUMMARY).exists():
            options = settle(spec.space.job(point, seed), folder, spec.served)

            def tell(update: int, reward: float) -> None:
                if update < options.max_train_steps:  # or ASHA would end a run that is done before it says so
                    REPORTING.set()
                    tune.report({METRIC: reward, TIME: update})
                    REPORTING.clear()

            run(options, spec.reserved, tell)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    tune.report({METRIC: summary["metrics"]["reward"]["after"]["mean"], TIME: summary["updates"]})


def settle(job: JobOptions, folder: Path, served: str) -> JobOptions:
    """A run's options: a folder of its own, rewards of everybody's, and where it goes on from.

    Args:
        job: its options at its point.
        folder: the run folder; what is left of a run that wrote no checkpoint is removed.
        served: the rewards that it asks.

    Returns:
        Validated options.
    """
    resume = LATEST if checkpoints.listed(folder / checkpoints.FOLDER) else None
    if resume is None:
        shutil.rmtree(folder, ignore_errors=True)
    places = {"output_dir": str(folder), "resume_from_checkpoint": resume, "served_rewards": served}
    return validate(job.model_copy(update=places | {"ray_address": "auto"}))


def of_config(config: Mapping[str, Any]) -> tuple[Point, int]:
    """A trial's point and seed.

    Args:
        config: As Tune has it.

    Returns:
        Values by name, and the run's seed.
    """
    values = dict(config)
    seed = int(values.pop(SEED))
    return dict(values.pop(POINT, values)), seed
