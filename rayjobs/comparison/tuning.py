"""As many trials for every method: train each at the budget, judge it on validation prompts, take the best."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from rayjobs import machine
from rayjobs.command_line import read_config
from rayjobs.comparison.base_model import base_model
from rayjobs.comparison.options import TrialsOptions
from rayjobs.comparison.pool import Pool, pool
from rayjobs.comparison.results import Store, claim, read_json, write_json
from rayjobs.comparison.tasks import DrawTask
from rayjobs.comparison.trainings import SUMMARY, Training, Trainings
from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import options_class
from rayjobs.options.cluster import RayOptions
from rayjobs.runtime.evaluation import choose
from sharpening.evaluation.comparison.results import Trial

BATCH = 24  # images a task
CONFIG, TRIALS = "tuning.json", "trials.json"
UNTUNED = "none"
SHIPPED = Path(__file__).with_name(TRIALS)
CANDIDATES = Path(__file__).with_name("candidates.json")
SAME_COST = {"learning_rate", "beta", "reward_scale", "snr_gamma", "loss_scale", "clip_range", "inner_steps",
             "train_batch_size"}  # fmt: skip
"""Options that change nothing in what an update costs, so that its time need not be measured again."""


class Tuning:
    """A tuning and its folder.

    Args:
        options: As parsed.
        command: The exact command, to go on with.
    """

    def __init__(self, options: TrialsOptions, command: str) -> None:
        self.options, self._command = options, command
        base_model(options, {"guidance_scale": options.guidance_scale})
        self._candidates = read_candidates(options)
        self.folder = Path(machine.lasting(options.output_dir)).expanduser()
        places = {"output_dir", *RayOptions.model_fields, "num_actors", "candidates"}
        kept = options.model_dump(mode="json", exclude=places)
        claim(self.folder, CONFIG, kept | {"tried": self._candidates}, ("methods", "tried"))
        self._started = time.monotonic()
        self._store = Store(self.folder)
        self._trainings = Trainings(self.folder, options, {}, self.say)

    def say(self, text: str) -> None:
        """Tell what goes on.

        Args:
            text: A line.
        """
        print(f"trials: {time.monotonic() - self._started:6.0f} s  {text}", file=sys.stderr, flush=True)

    def execute(self) -> Path:
        """Train and judge what is missing.

        Returns:
            The file with all trials, written anew after every method.

        Raises:
            RunStopped: If a trial could not be trained; everything else was done.
        """
        path = self.folder / TRIALS
        for system in self.options.methods:
            trials = [self._training(system, place) for place in range(len(self._candidates[system]))]
            self._trainings.train_all(trials)
            self._judge([training for training in trials if self._trainings.done(training)])
            write_json(path, {"trials": [asdict(trial) for trial in self.trials()]})
        if self._trainings.failed:
            raise RunStopped("; ".join(self._trainings.failed.values()), self._command)
        return path

    def trials(self) -> list[Trial]:
        """What was tried so far, method by method, each method's best one chosen where all of its trials are done."""
        found = []
        for system in self.options.methods:
            tried = [
                self._trial(system, place) for place in range(len(self._candidates[system]))
                if self._store.has(self._training(system, place).name)
            ]  # fmt: skip
            best = max(tried, key=_rank, default=None)
            whole = len(tried) == len(self._candidates[system])
            found += [Trial(**{**asdict(t), "chosen": whole and t is best}) for t in tried]
        return found

    def _training(self, system: str, place: int) -> Training:
        changes, base = self._candidates[system][place], Training.of(system, self.options.seed)
        name = f"{system}, trial {place + 1}"
        first = f"{system}, trial 1"
        timed = first if SAME_COST.issuperset(changes) else name
        return Training(name, base.method, base.seed, {**base.changes, **changes}, timed)

    def _judge(self, trainings: Sequence[Training]) -> None:
        """Judge images of the validation prompts, the same noise for every model."""
        from sharpening.shapes import assets

        missing = [training for training in trainings if not self._store.has(training.name)]
        if not missing:
            return
        options = self.options
        items = [index for index, _ in choose(assets.validation_benchmark(), options.validation_prompts)]
        parts = [tuple(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
        with pool("trials", options.num_actors, options.actor_threads, options) as actors:
            for training in missing:
                self._draw(actors, training, parts)

    def _draw(self, actors: Pool, training: Training, parts: Sequence[tuple[int, ...]]) -> None:
        options, model = self.options, self._trainings.model(training)
        tasks = [
            DrawTask(training.system, options.seed, model, part, options.guidance_scale, options.steps,
                     validation=True)
            for part in parts
        ]  # fmt: skip
        answers = actors.map(tasks, partial(self._tell, training.name))
        self._store.write(training.name, [row for answer in answers for row in answer.judgements])

    def _tell(self, what: str, done: int, total: int) -> None:
        if done == total:
            self.say(f"judged {what}")

    def _trial(self, system: str, place: int) -> Trial:
        training = self._training(system, place)
        rows = [row for row in self._store.judgements() if row.system == training.system]
        summary = read_json(self._trainings.folder(training) / SUMMARY)
        facts, all_facts, clip = (_mean([getattr(row, name) for row in rows]) for name in ("facts", "all", "clip"))
        assert clip is not None
        seconds = float(summary["seconds_training"])
        return Trial(system, self._candidates[system][place], summary["updates"], facts, all_facts, clip, seconds)


def _rank(trial: Trial) -> float:
    """What settings are chosen by: the facts, or the reward where images are not of the verifiers' size."""
    return trial.clip if trial.facts is None else trial.facts


def _mean(values: Sequence[float | bool | None]) -> float | None:
    """The mean; `None` where the judge said nothing of any."""
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None


def read_candidates(options: TrialsOptions) -> dict[str, list[dict[str, Any]]]:
    """The settings to try.

    Args:
        options: The tuning's options.

    Returns:
        A list of settings a method, all of the same length.

    Raises:
        OptionError: If a method has none or another number of them, or one is no setting of the method.
    """
    name = "candidates"
    found = read_config(options.candidates or str(CANDIDATES), name)
    for method in options.methods:
        settings = found.get(method)
        if not isinstance(settings, list) or not settings or not all(isinstance(one, dict) for one in settings):
            raise OptionError(name, f"there is no list of settings for {method}", "add one, or leave out the method")
        base = Training.of(method, 0)
        for setting in settings:
            try:
                options_class(base.method)(**{**base.changes, **setting})
            except (ValidationError, TypeError) as error:
                wrong = f"{method}, {json.dumps(setting)}: {str(error).splitlines()[0]}"
                raise OptionError(name, wrong, "see finetune.py --help") from error
    counts = {method: len(found[method]) for method in options.methods}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise OptionError(name, f"methods would get unequal numbers of trials ({said})", "give each as many")
    return {method: found[method] for method in options.methods}


def read_trials(path: str | None, methods: Sequence[str]) -> list[Trial]:
    """Trials that a tuning made.

    Args:
        path: Its file; `None` for the shipped one, `none` for no tuning.
        methods: Methods that are compared.

    Returns:
        Those of these methods.

    Raises:
        OptionError: If the file cannot be read, or holds no trials.
    """
    name = "trials"
    if path == UNTUNED:
        return []
    found = read_config(path or str(SHIPPED), name)
    try:
        trials = [Trial(**values) for values in found["trials"]]
    except (KeyError, TypeError) as error:
        wrong = f"{path} holds no trials ({type(error).__name__}: {error})"
        raise OptionError(name, wrong, "pass a file that rayjobs/trials.py wrote") from error
    return [trial for trial in trials if trial.system in methods]


def chosen(trials: Sequence[Trial]) -> dict[str, Mapping[str, Any]]:
    """The options that won.

    Args:
        trials: All trials.

    Returns:
        Options by method's name; none for a method whose own options won or that was not tuned.
    """
    return {trial.system: dict(trial.options) for trial in trials if trial.chosen and trial.options}
