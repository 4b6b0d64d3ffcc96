"""Training every method at the same budget, each run a job of its own: `rayjobs/finetune.py` in a subprocess."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayjobs.comparison.options import VARIANTS, BudgetOptions
from rayjobs.comparison.tasks import Model
from rayjobs.errors import RunStopped
from rayjobs.options import JobOptions, options_class
from rayjobs.options.cluster import RayOptions, cluster_to_join
from rayjobs.options.model import ModelOptions
from rayjobs.runtime import checkpoints
from rayjobs.runtime.ranked import PAIRS

ROOT = Path(__file__).resolve().parents[2]
SIDE_BY_SIDE = 2  # jobs
CALIBRATION_UPDATES = 4  # the first one pays for starting up and is not counted
MODEL = tuple(ModelOptions.model_fields)
"""Options that say which model every training starts from."""
SUMMARY, COST = "summary.json", "cost.json"


@dataclass(frozen=True)
class Training:
    """One training run of the comparison.

    Attributes:
        system: Its name in the comparison: the method, or the method and what is varied.
        method: The method.
        seed: Its seed.
        changes: Options that differ from the method's own.
        timed_as: The system whose updates take as long; itself by default.
    """

    system: str
    method: str
    seed: int
    changes: Mapping[str, Any]
    timed_as: str | None = None

    @classmethod
    def of(cls, system: str, seed: int) -> "Training":
        """That of a method by its name, or of a variant of one."""
        method, changes = VARIANTS.get(system, (system, {}))
        return cls(system, method, seed, changes)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.system}-s{self.seed}"


class Trainings:
    """The training runs under a comparison's folder; what is there already is not run again.

    Attributes:
        failed: Why a training could not be made, by its name.

    Args:
        folder: The comparison's folder.
        options: The comparison's options.
        overrides: Options by method's name, which its variants have too.
        say: Where progress goes.
        tuned: Options that won a tuning, by system's name: a variant has its own, not its method's.
    """

    def __init__(
        self, folder: Path, options: BudgetOptions, overrides: Mapping[str, Mapping[str, Any]],
        say: Callable[[str], None], tuned: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._options, self._overrides, self._say = folder, options, overrides, say
        self._tuned = tuned or {}
        self._running: set[subprocess.Popen[str]] = set()
        self.failed: dict[str, str] = {}

    def folder(self, training: Training) -> Path:
        """Where a training's run folder is, or will be."""
        return self._folder / "runs" / training.name

    def model(self, training: Training) -> Model:
        """What a finished training made; its pipeline holds the VAE that it was trained with."""
        return Model(str((self.folder(training) / "pipeline").resolve()), self._options.resolution)

    def done(self, training: Training) -> bool:
        """Whether a training is finished."""
        return (self.folder(training) / SUMMARY).exists()

    def train(self, training: Training) -> Path:
        """Train, or go on training, unless it is done.

        Args:
            training: What to train.

        Returns:
            The run folder.

        Raises:
            RunStopped: If the run fails; its folder and its last checkpoint stay.
        """  # noqa: DOC502
        folder = self.folder(training)
        if not self.done(training):
            values = self._values(training) | {"max_train_steps": self.updates(training)}
            self._run(folder, training.method, values | short_warmup(options_class(training.method)(**values)))
        return folder

    def of(self, system: str, seed: int) -> Training:
        """The training of a system with the options that it was tuned to.

        Args:
            system: A method, or a variant of one.
            seed: Its seed.

        Returns:
            The training.
        """
        training = Training.of(system, seed)
        return replace(training, changes={**training.changes, **self._tuned.get(system, {})})

    def varied(self, system: str, method: str, seed: int, option: str, value: Any) -> Training:
        """The training of a method with one option changed, the others its own.

        Args:
            system: What it is called.
            method: The method.
            seed: Its seed.
            option: The option's name.
            value: Its value.

        Returns:
            The training.
        """
        return Training(system, method, seed, {**self._tuned.get(method, {}), option: value})

    def own(self, method: str, option: str) -> Any:
        """What an option of a method is where nothing varies it.

        Args:
            method: The method.
            option: The option's name.

        Returns:
            Its value in this comparison.
        """
        default = options_class(method).model_fields[option].default
        return {option: default, **self._tuned.get(method, {}), **self._overrides.get(method, {})}[option]

    def train_all(self, trainings: Sequence[Training]) -> None:
        """Train one after the other; side by side where no clock decides how long each trains.

        Half of a short job is one process waiting for another to start. On a cluster that is joined, jobs would wait
        for each other's CPUs. One that fails does not keep the others from being trained: see `failed`.

        Args:
            trainings: What to train.
        """
        joins = cluster_to_join(self._options.ray_address)
        with ThreadPoolExecutor(1 if self._options.updates is None or joins else SIDE_BY_SIDE) as pool:
            try:
                for _ in pool.map(self._try, trainings):
                    pass
            except BaseException:  # an interrupt reaches this thread alone
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def _try(self, training: Training) -> None:
        if self.done(training):
            return
        self._say(f"training {training.name}")
        try:
            self.train(training)
        except RunStopped as error:
            self.failed[training.name] = error.reason
            self._say(error.reason)

    def stop(self) -> None:
        """End the jobs that run; each leaves a checkpoint to go on from."""
        for process in list(self._running):
            process.terminate()

    def updates(self, training: Training) -> int:
        """As many updates as the budget pays for, by what an update took when it was first tried on this machine.

        Args:
            training: The training.

        Returns:
            At least one.
        """
        if self._options.updates is not None:
            return self._options.updates
        path = self._folder / "calibration.json"
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        timed = training.timed_as or training.system
        if timed not in known:
            known[timed] = self._calibrate(replace(training, system=timed))
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        found = known[timed]
        return max(1, int((self._options.train_seconds - found["before"]) / found["update"]))

    def _calibrate(self, training: Training) -> dict[str, float]:
        """Seconds of an update (of the quickest: a round may begin with the others), and of what comes beside them."""
        from sharpening.evaluation.metrics import read_metrics

        folder = self._folder / "calibration" / training.system
        if not (folder / SUMMARY).exists():
            values = self._values(training) | {"max_train_steps": CALIBRATION_UPDATES}
            self._run(folder, training.method, values | {"lr_scheduler": "constant", "lr_warmup_steps": 0})
        seconds = [row["seconds"] for row in read_metrics(folder)][1:]
        return {"update": min(seconds), "before": self.seconds_before(folder)}

    def seconds_before(self, folder: Path) -> float:
        """Wall seconds that a run spent on ranking images: before its first update, or where a round began.

        Args:
            folder: The run folder.

        Returns:
            Seconds. Pairs of a whole run are ranked by all actors side by side, those of a round by one.
        """
        spent = json.loads((folder / COST).read_text(encoding="utf-8"))["seconds"]
        side_by_side = JobOptions.model_fields["num_rollout_actors"].default if (folder / PAIRS).exists() else 1
        return float(sum(value for stage, value in spent.items() if stage.startswith("rank_")) / side_by_side)

    def _values(self, training: Training) -> dict[str, Any]:
        """The run's options."""
        options, model = self._options, options_class(training.method)
        values: dict[str, Any] = {
            "seed": training.seed, "skip_evaluation": True, **{name: getattr(options, name) for name in MODEL},
            **self._overrides.get(training.method, {}), **training.changes,
            **self._overrides.get(training.system, {}),
        }  # fmt: skip
        if options.prompts_per_update is not None:
            values |= shrunk(model(**values), options.prompts_per_update)
        return values

    def _run(self, folder: Path, method: str, values: dict[str, Any]) -> None:
        """Run a job; goes on from its last checkpoint where it has one."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = folder.parent / f"{folder.name}.json"
        config.write_text(json.dumps({"method": method, **values}, indent=2) + "\n", encoding="utf-8")
        command = [sys.executable, str(ROOT / "rayjobs" / "finetune.py"), "--config", str(config),
                   "--output_dir", str(folder)]  # fmt: skip
        for name in RayOptions.model_fields:
            if (value := getattr(self._options, name)) is not None:
                command += [f"--{name}", value]
        if checkpoints.listed(folder / checkpoints.FOLDER):
            command += ["--resume_from_checkpoint", "latest"]
        elif folder.exists():  # it ended before its first checkpoint
            folder.rename(folder.with_name(f"{folder.name}.failed-{os.getpid()}"))
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        assert process.stderr is not None
        self._running.add(process)
        last = ""
        try:
            for line in process.stderr:
                last = line.strip() or last
                self._say(f"| {line.rstrip()}")
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            self._running.discard(process)
        if process.returncode:
            raise RunStopped(f"training {folder.name} ended with exit code {process.returncode}: {last}")


def short_warmup(options: JobOptions) -> dict[str, Any]:
    """A warm-up that leaves most of a short run, where the method's own was made for a longer one.

    Args:
        options: The run's options.

    Returns:
        The options that change; none where the warm-up fits.
    """
    if 2 * options.lr_warmup_steps <= options.max_train_steps:
        return {}
    warmup = options.max_train_steps // 4
    constant = options.lr_scheduler == "constant_with_warmup" and not warmup
    return {"lr_warmup_steps": warmup} | ({"lr_scheduler": "constant"} if constant else {})


def shrunk(options: JobOptions, prompts: int) -> dict[str, Any]:
    """Smaller updates of the same method, with batches that fit.

    Args:
        options: The method's options.
        prompts: Examples an update.

    Returns:
        The options that change.
    """
    groups = prompts * options.method_options().groups_per_prompt
    inner = options.inner_steps if groups % options.inner_steps == 0 else 1
    batch = next(d for d in range(min(options.train_batch_size, groups // inner), 0, -1) if groups // inner % d == 0)
    changes: dict[str, Any] = {"prompts_per_update": prompts, "train_batch_size": batch, "inner_steps": inner}
    changes["num_rollout_actors"] = 1  # a second one takes longer to start than it saves
    changes["rollout_batch_size"] = max(1, min(options.rollout_batch_size, prompts // 2))
    if "ranked_prompts" in type(options).model_fields:
        changes["ranked_prompts"] = 2 * prompts
    return changes
