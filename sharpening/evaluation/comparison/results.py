"""Everything a report is made of; a part that was not run is left empty and its reason given in `missing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sharpening.evaluation.comparison.columns import OVERALL
from sharpening.evaluation.comparison.diversity import Diversity
from sharpening.evaluation.comparison.records import ImageJudgement, SystemCost


@dataclass(frozen=True)
class Sweep:
    """One option varied, everything else held: the analogue of Tables 2 and 3, and the temperature's table.

    Attributes:
        name: `branches`, `steps` or `temperature`; the first two stand beside the paper's.
        symbol: the option's symbol: n, m, λ.
        systems: name of the system in the judgements by the option's value.
    """

    name: str
    symbol: str
    systems: Mapping[float, str]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried while a system was tuned.

    Attributes:
        system: the system.
        options: what differs from the method's own options.
        updates: how many the budget paid for.
        facts: share of the prompts' facts that the verifiers found in its images of the validation prompts. Settings
            are chosen by it: whole prompts right or wrong are a coarser measure of the same thing. None where the
            images are not of the verifiers' size: settings are chosen by `clip` then.
        all: share of those prompts with every fact right, the overall verifier score; None likewise.
        clip: mean CLIP reward of those images.
        seconds: wall seconds of its training.
        chosen: whether this setting was taken.
    """

    system: str
    options: Mapping[str, Any]
    updates: int
    facts: float | None
    all: float | None
    clip: float
    seconds: float
    chosen: bool = False


@dataclass(frozen=True)
class TrainingCurve:
    """What one training run logged.

    Attributes:
        system: the system.
        seed: seed of the run.
        rows: a row an update with `update` and as far as logged `loss`, `reward` and `reward_spread`.
    """

    system: str
    seed: int
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ComparisonResults:
    """All that was measured.

    Attributes:
        judgements: a row an image.
        costs: a row a system, seed and budget.
        guidance_scale: guidance of the main table.
        steps: sampler steps of the main table.
        search_multiple: budget of the searches in the main table, as a multiple of the base model's NFE per image;
            other budgets belong to Figure 5.
        overall: the column that verdicts are made on.
        sweeps: options varied.
        curves: training runs.
        diversity: diversity of each system's images.
        trials: settings tried while tuning.
        notes: sentences on what was found out beyond the numbers, such as why a claim fails.
        missing: reason by part that was not run: a column, a sweep's name, a system, `diversity`, `trials`, …
        command: the exact command.
        commit: the project's commit, `None` outside a checkout.
        machine: what it ran on, in words.
    """

    judgements: Sequence[ImageJudgement]
    costs: Sequence[SystemCost]
    guidance_scale: float
    steps: int
    search_multiple: float = 16.0
    overall: str = OVERALL
    sweeps: Sequence[Sweep] = ()
    curves: Sequence[TrainingCurve] = ()
    diversity: Mapping[str, Diversity] = field(default_factory=dict)
    trials: Sequence[Trial] = ()
    notes: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    commit: str | None = None
    machine: str = ""
