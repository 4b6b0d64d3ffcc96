"""One comparison from start to end: seed by seed train, judge, report; then the sweeps."""

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayjobs import machine
from rayjobs.command_line import read_config
from rayjobs.comparison.base_model import base_model
from rayjobs.comparison.grading import check_grader
from rayjobs.comparison.options import SWEPT, CompareOptions
from rayjobs.comparison.reporting import alarms, report, sweep_system
from rayjobs.comparison.results import Store, claim, read_json
from rayjobs.comparison.trainings import Training, Trainings
from rayjobs.comparison.tuning import chosen, read_trials
from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import options_class
from rayjobs.options.cluster import RayOptions
from sharpening.rewards import RewardUnavailable

SIDE_BY_SIDE = 2  # jobs
CONFIG, NOTES = "comparison.json", "notes.json"
STANDING_NOTES = (
    "The trials began from defaults that were themselves chosen with earlier ones, unequal in number and most for RLHF "
    "sharpening (docs/notebook.md), which favours it.",
)


class Comparison:
    """A comparison and its folder.

    Args:
        options: As parsed.
        command: The exact command, for the report.
    """

    def __init__(self, options: CompareOptions, command: str) -> None:
        self.options, self._command = options.resolved(), command
        self._base = base_model(self.options, {"guidance_scales": max(self.options.guidance_scales)})
        self._trials = read_trials(self.options.trials, self.options.methods)
        overrides = read_overrides(self.options)
        tuned = {system: options for system, options in chosen(self._trials).items() if system not in overrides}
        self.folder = Path(machine.lasting(self.options.output_dir)).expanduser()
        told = self.options.model_dump(mode="json", exclude=NOT_KEPT) | {"overrides": {**tuned, **overrides}}
        claim(self.folder, CONFIG, told, GROWING)
        self._started = time.monotonic()
        self._store = Store(self.folder)
        self._trainings = Trainings(self.folder, self.options, overrides, self.say, tuned)

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
        measurement = Measurement(options, self._base, self._store, self._trainings, self.say)
        try:
            for seed in options.seeds:
                self._trainings.train_all([self._trainings.of(method, seed) for method in options.methods])
                measurement.measure(self._done([seed]), [seed], options.searches)
                path = self._report()
            self._trainings.train_all(list(self._swept()))
            measurement.measure(self._done(), options.seeds, options.searches)
            path = self._report()
        except RewardUnavailable as error:  # what an actor raised, as Ray hands it on
            raise RunStopped(str(getattr(error, "cause", error)), self._command) from error
        if self._trainings.failed:
            raise RunStopped("; ".join(self._trainings.failed.values()), self._command)
        return path

    def _swept(self) -> Iterator[Training]:
        """The sweeps' trainings: RLHF sharpening with one option varied, the others its own."""
        for name in self.options.sweeps:
            for value in SWEPT[name]:
                system = sweep_system(name, value, self._trainings.own("rlhf", name))
                if system in ("dpo", "rlhf"):
                    continue  # systems of the comparison itself
                kind = type(options_class("rlhf").model_fields[name].default)
                for seed in self.options.sweep_seeds:
                    yield self._trainings.varied(system, "rlhf", seed, name, kind(value))

    def _done(self, seeds: list[int] | None = None) -> list[Training]:
        """Finished trainings, of some seeds or of all with the sweeps."""
        main = [self._trainings.of(m, seed) for seed in seeds or self.options.seeds for m in self.options.methods]
        return [t for t in [*main, *([] if seeds else self._swept())] if self._trainings.done(t)]

    def _wanted(self) -> Iterator[str]:
        """Everything that is judged, by its name in the store."""
        for seed in self.options.seeds:
            yield from (f"{name}-s{seed}" for name in ("base", *self.options.methods, *self.options.searches))
        yield from (training.name for training in self._swept())

    def _report(self) -> Path:
        notes = [*STANDING_NOTES, *read_json(self.folder / NOTES).get("notes", [])]
        path = report(
            self.folder, self.options, self._store, self._trainings, self._done(), self._trials, notes, self._command
        )
        for alarm in alarms(self.options, self._store):
            self.say(alarm)
        self.say(f"report {path}")
        return path


NOT_KEPT = {"output_dir", *RayOptions.model_fields, "num_actors", "grader_url", "trials"}
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
