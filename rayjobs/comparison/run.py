"""One comparison from start to end: seed by seed train, judge, report; then the sweeps."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayjobs import machine
from rayjobs.command_line import read_config
from rayjobs.comparison.grading import check_grader
from rayjobs.comparison.options import SWEPT, CompareOptions
from rayjobs.comparison.reporting import report, sweep_system
from rayjobs.comparison.results import Store, read_json, write_json
from rayjobs.comparison.trainings import Training, Trainings
from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import options_class
from sharpening.rewards import RewardUnavailable

SIDE_BY_SIDE = 2  # jobs
CONFIG, NOTES = "comparison.json", "notes.json"
TRIALS = Path(__file__).with_name("trials.json")  # with which the methods' defaults were chosen
STANDING_NOTES = (
    "Trials of the methods: one seed, 120 validation prompts, at most three a method; their base scores .125 (DDPO, "
    "D3PO), .242 (standard, SFT, Diffusion-DPO) and .208 (REBEL, IterPO), because the prompts were not the same. RLHF "
    "sharpening's defaults are older and were chosen with more trials than three (docs/notebook.md), which favours it.",
)


class Comparison:
    """A comparison and its folder.

    Args:
        options: As parsed.
        command: The exact command, for the report.
    """

    def __init__(self, options: CompareOptions, command: str) -> None:
        self.options, self._command = options.resolved(), command
        self._overrides = read_overrides(self.options)
        self.folder = Path(machine.lasting(self.options.output_dir)).expanduser()
        self._claim()
        self._started = time.monotonic()
        self._store = Store(self.folder)
        self._trainings = Trainings(self.folder, self.options, self._overrides, self.say)
        self._failed: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Tell what goes on.

        Args:
            text: A line.
        """
        print(f"compare: {time.monotonic() - self._started:6.0f} s  {text}", file=sys.stderr, flush=True)

    def execute(self) -> Path:
        """Run what is missing.

        Returns:
            The report's Markdown file.

        Raises:
            RunStopped: If a method could not be trained; everything else was done, and the report says so. Or if the
                reward or the grader stays down.
            OptionError: If the grader does not grade.
        """  # noqa: DOC502
        from rayjobs.comparison.measure import Measurement

        options = self.options
        if not all(self._store.has(name) for name in self._wanted()):
            check_grader(options)
        measurement = Measurement(options, self._store, self._trainings, self.say)
        try:
            for seed in options.seeds:
                self._train_all([Training.of(method, seed) for method in options.methods])
                measurement.measure(self._done([seed]), [seed], options.searches)
                path = self._report()
            self._train_all(list(self._swept()))
            measurement.measure(self._done(), options.seeds, options.searches)
            path = self._report()
        except RewardUnavailable as error:  # what an actor raised, as Ray hands it on
            raise RunStopped(str(getattr(error, "cause", error)), self._command) from error
        if self._failed:
            raise RunStopped("; ".join(self._failed.values()), self._command)
        return path

    def _train_all(self, trainings: Sequence[Training]) -> None:
        """Train one after the other; side by side where no clock decides how long each trains.

        Half of a short job is one process waiting for another to start. On a cluster that is joined, jobs would wait
        for each other's CPUs.
        """
        joins = self.options.ray_address or os.environ.get("RAY_ADDRESS")
        with ThreadPoolExecutor(1 if self.options.updates is None or joins else SIDE_BY_SIDE) as pool:
            try:
                for _ in pool.map(self._train, trainings):
                    pass
            except BaseException:  # an interrupt reaches this thread alone
                pool.shutdown(wait=False, cancel_futures=True)
                self._trainings.stop()
                raise

    def _train(self, training: Training) -> None:
        """Train; a method that fails does not keep the others from being compared."""
        if self._trainings.done(training):
            return
        self.say(f"training {training.name}")
        try:
            self._trainings.train(training)
        except RunStopped as error:
            self._failed[training.name] = error.reason
            self.say(error.reason)

    def _swept(self) -> Iterator[Training]:
        """The sweeps' trainings: RLHF sharpening with one option varied, the others its own."""
        for name in self.options.sweeps:
            for value in SWEPT[name]:
                system = sweep_system(name, value, self._trainings.own("rlhf", name))
                if system in ("dpo", "rlhf"):
                    continue  # systems of the comparison itself
                kind = type(options_class("rlhf").model_fields[name].default)
                for seed in self.options.sweep_seeds:
                    yield Training(system, "rlhf", seed, {name: kind(value)})

    def _done(self, seeds: list[int] | None = None) -> list[Training]:
        """Finished trainings, of some seeds or of all with the sweeps."""
        main = [Training.of(m, seed) for seed in seeds or self.options.seeds for m in self.options.methods]
        return [t for t in [*main, *([] if seeds else self._swept())] if self._trainings.done(t)]

    def _wanted(self) -> Iterator[str]:
        """Everything that is judged, by its name in the store."""
        for seed in self.options.seeds:
            yield from (f"{name}-s{seed}" for name in ("base", *self.options.methods, *self.options.searches))
        yield from (training.name for training in self._swept())

    def _report(self) -> Path:
        trials = read_json(TRIALS)["trials"]
        notes = [*STANDING_NOTES, *read_json(self.folder / NOTES).get("notes", [])]
        path = report(
            self.folder, self.options, self._store, self._trainings, self._done(), trials, notes, self._command
        )
        self.say(f"report {path}")
        return path

    def _claim(self) -> None:
        """Make the folder, or check that it is this comparison's."""
        values = self.options.model_dump(mode="json", exclude={"output_dir", "ray_address", "num_actors", "grader_url"})
        values["overrides"] = self._overrides
        path = self.folder / CONFIG
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = read_json(path)
        except (OSError, ValueError) as error:
            raise OptionError("output_dir", f"{self.folder} cannot be used ({error})", "pass another folder") from error
        if not known and any(self.folder.iterdir()):
            raise OptionError("output_dir", f"{self.folder} holds something else", "pass another folder")
        differing = [name for name in values if known and known.get(name) != values[name] and name not in GROWING]
        if differing:
            raise OptionError(
                differing[0], f"is {json.dumps(values[differing[0]])}, but the comparison in {self.folder} has "
                f"{json.dumps(known.get(differing[0]))}", "pass that, or another --output_dir",
            )  # fmt: skip
        write_json(path, values)


GROWING = ("methods", "searches", "seeds", "sweeps", "sweep_seeds")
"""What may be added to a comparison that was begun."""


def read_overrides(options: CompareOptions) -> Mapping[str, Mapping[str, Any]]:
    """Options of methods that differ from those they were tuned with.

    Args:
        options: The comparison's options.

    Returns:
        Options by method's name.

    Raises:
        OptionError: If the file names another method or option, or a value is wrong.
    """
    if options.method_config is None:
        return {}
    name = "method_config"
    found = read_config(options.method_config, name)
    for method, values in found.items():
        if method not in options.methods:
            raise OptionError(name, f"'{method}' is not compared", f"name one of {', '.join(options.methods)}")
        try:
            options_class(Training.of(method, 0).method)(**values)
        except (ValidationError, TypeError) as error:
            raise OptionError(name, f"{method}: {str(error).splitlines()[0]}", "see finetune.py --help") from error
    return found
