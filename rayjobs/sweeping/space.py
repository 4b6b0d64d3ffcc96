"""The space of a sweep: what is varied, its points, and the job's options at each. Nothing heavy is imported."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from rayjobs.command_line import explain
from rayjobs.errors import OptionError
from rayjobs.options import JobOptions
from rayjobs.options.cluster import RayOptions
from rayjobs.sweeping.options import SWEPT, SweepOptions
from rayjobs.validation import check_batches, check_method, validate

RANGE = ".."
LOG_FROM = 10.0
"""A range whose ends are so many times apart is drawn from by order of magnitude."""

Point = dict[str, float]
"""Values of the options that are varied, by name."""


@dataclass(frozen=True)
class Range:
    """What a search draws a value from.

    Attributes:
        low: lower end.
        high: upper end.
        whole: whether values are whole numbers.
    """

    low: float
    high: float
    whole: bool

    @property
    def logarithmic(self) -> bool:
        """Whether it is drawn from by order of magnitude."""
        return self.low > 0 and self.high / self.low >= LOG_FROM

    def draw(self, rng: random.Random) -> float:
        """Draw a value.

        Args:
            rng: where chance comes from.

        Returns:
            The value.
        """
        if self.whole:
            return rng.randint(int(self.low), int(self.high))
        if self.logarithmic:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return rng.uniform(self.low, self.high)


Values = tuple[float, ...] | Range


class Space:
    """What is varied over a job's options.

    Args:
        options: of the sweep.
        job: options of the job, which every run has but for what is varied.
    """

    def __init__(self, options: SweepOptions, job: JobOptions) -> None:
        self._job = job
        _check_scheduler(options, job)
        self.search, self.num_samples, self.seeds = options.search, options.num_samples, options.seeds
        given = {name: getattr(options, name) for name in SWEPT}
        self.values: dict[str, Values] = {name: self._read(name, texts) for name, texts in given.items() if texts}
        self._check()

    def points(self) -> list[Point]:
        """The points that are tried, where no search decides that on the way.

        Returns:
            All of a grid, in order; of a random search those that its first seed draws.
        """
        if self.search == "grid":
            combinations = itertools.product(*(self._listed(name) for name in self.values))
            return [dict(zip(self.values, values, strict=True)) for values in combinations]
        rng = random.Random(self.seeds[0])
        found: dict[str, Point] = {}  # each point once: a run that is made twice says nothing new
        while len(found) < self.num_samples:
            point = {name: _draw(values, rng) for name, values in self.values.items()}
            found.setdefault(label(point), point)
        return list(found.values())

    def job(self, point: Mapping[str, float], seed: int) -> JobOptions:
        """The job's options at a point.

        Args:
            point: values by name.
            seed: the run's seed.

        Returns:
            Checked options, which do not say yet where the run is.

        Raises:
            OptionError: if they do not go together.
        """
        values = self._job.model_dump() | dict(point) | {"seed": seed, "gradient_accumulation_steps": None}
        try:
            options = type(self._job)(**values)
        except ValidationError as error:
            raise OptionError(*explain(error, None, type(self._job))) from error
        check_method(options)
        check_batches(options)
        return options

    def _read(self, name: str, texts: Sequence[str]) -> Values:
        """Values of an option, each as its type has it, or the range."""
        if name not in type(self._job).model_fields:
            raise OptionError(name, f"{self._job.method} has no such option", "leave it out")
        whole = type(self._job).model_fields[name].annotation is int
        ranges = [text for text in texts if RANGE in text]
        if not ranges:
            return tuple(_number(name, text, whole) for text in texts)
        if self.search == "grid":
            raise OptionError(name, f"a grid has no points in {ranges[0]}", "list values, or pass --search random")
        if len(texts) > 1:
            raise OptionError(name, "a range stands alone", f"pass {ranges[0]} or values")
        low, high = (_number(name, end, whole) for end in ranges[0].split(RANGE, 1))
        if not low < high:
            raise OptionError(name, f"{ranges[0]} is no range", "pass LOW..HIGH")
        return Range(low, high, whole)

    def _listed(self, name: str) -> tuple[float, ...]:
        values = self.values[name]
        return (values.low, values.high) if isinstance(values, Range) else values

    def _check(self) -> None:
        """Refuse the space if a value, or a point of a grid, is none that the job can have."""
        if not self.values:
            raise OptionError("branches", "nothing is varied", "pass values of an option, such as --branches 2 4")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise OptionError("seeds", "every seed must be there once", "pass different seeds")
        if self.search == "optuna" and len(self.seeds) > 1:
            raise OptionError(
                "seeds",
                "'optuna' goes by one number a point",
                "pass one seed, then a grid of the best points with more",
            )
        size = math.prod(_size(values) for values in self.values.values())
        if self.search != "grid" and self.num_samples > size:
            raise OptionError(
                "num_samples", f"is {self.num_samples}, but the space has only {size} point{'s' if size > 1 else ''}",
                f"pass at most {size}, or --search grid",
            )  # fmt: skip
        for name in self.values:
            if len(set(self._listed(name))) < len(self._listed(name)):
                raise OptionError(name, "a value stands there twice", "name it once")
            for value in self._listed(name):
                self.job({name: value}, self.seeds[0])
        for point in self.points():
            self.job(point, self.seeds[0])


def _check_scheduler(options: SweepOptions, job: JobOptions) -> None:
    """Refuse an early end that could never come, or would come before anything is known."""
    if options.scheduler != "asha":
        return
    if options.grace_updates > job.max_train_steps:
        raise OptionError(
            "grace_updates", f"is {options.grace_updates}, but a run has only {job.max_train_steps} updates",
            f"pass at most {job.max_train_steps}",
        )  # fmt: skip
    if not 0 < job.validation_steps < job.max_train_steps:
        raise OptionError(
            "validation_steps",
            f"is {job.validation_steps}, so that 'asha' never sees how a run of {job.max_train_steps} updates goes on",
            f"pass 1 to {job.max_train_steps - 1}, or --scheduler none",
        )


def check_job(job: JobOptions) -> JobOptions:
    """Refuse a job that a sweep cannot compare, and settle its place.

    Args:
        job: as parsed.

    Returns:
        The same, validated; where each run is, it does not say.

    Raises:
        OptionError: if something is wrong with it.
    """
    for name in ("output_dir", "resume_from_checkpoint", *RayOptions.model_fields, "served_rewards"):
        if getattr(job, name) is not None:
            raise OptionError(name, "is the sweep's to say, of each of its runs", "leave it out behind --")
    if job.skip_evaluation:
        raise OptionError("skip_evaluation", "a sweep compares its runs by their evaluation", "leave it out")
    validate(job.model_copy(update={"ray_address": "auto"}))
    return job


def label(point: Mapping[str, float]) -> str:
    """A point in words.

    Args:
        point: values by name.

    Returns:
        Such as `branches=3 temperature=4`.
    """
    return " ".join(f"{name}={value:g}" for name, value in point.items())


def run_name(point: Mapping[str, float], seed: int) -> str:
    """Name of a run's folder.

    Args:
        point: values by name.
        seed: the run's seed.

    Returns:
        Such as `branches-3_temperature-4_seed-0`; equal points have equal names.
    """
    return "_".join([*(f"{name}-{value:.6g}" for name, value in point.items()), f"seed-{seed}"])


def _size(values: Values) -> float:
    """How many values there are to draw."""
    if isinstance(values, Range):
        return values.high - values.low + 1 if values.whole else math.inf
    return len(values)


def _draw(values: Values, rng: random.Random) -> float:
    return values.draw(rng) if isinstance(values, Range) else rng.choice(values)


def _number(name: str, text: str, whole: bool) -> float:
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        expected = "a whole number" if whole else "a number"
        raise OptionError(name, f"'{text}' is not {expected}", f"pass {expected}") from error
