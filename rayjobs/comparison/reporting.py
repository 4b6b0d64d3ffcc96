"""From what is on disk to the report: `sharpening.evaluation.comparison` does the judging, this only gathers."""

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayjobs import machine
from rayjobs.comparison.grading import grader_note, without_grades
from rayjobs.comparison.options import SWEPT, CompareOptions
from rayjobs.comparison.results import Store
from rayjobs.comparison.trainings import Training, Trainings
from sharpening.evaluation.comparison.columns import COLUMNS, OVERALL
from sharpening.evaluation.comparison.divergence import divergences
from sharpening.evaluation.comparison.diversity import Diversity, diversity
from sharpening.evaluation.comparison.report import write_report
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep, TrainingCurve, Trial
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.metrics import read_metrics
from sharpening.evaluation.run_folder import versions
from sharpening.shapes.scene import IMAGE_SIZE

SYMBOLS = {"branches": "n", "branch_steps": "m", "temperature": "λ"}
NAMES = {"branches": "branches", "branch_steps": "steps", "temperature": "temperature"}


def report(
    folder: Path, options: CompareOptions, store: Store, trainings: Trainings, done: Sequence[Training],
    trials: Sequence[Trial], notes: Sequence[str], command: str,
) -> Path:  # fmt: skip
    """Write the report of everything measured so far.

    Args:
        folder: The comparison's folder.
        options: Its options, resolved.
        store: What was measured.
        trainings: The training runs.
        done: Those that are finished.
        trials: Settings tried while tuning.
        notes: Sentences for the report.
        command: The exact command.

    Returns:
        The report's Markdown file.
    """
    told, judgements = versions(), store.judgements()
    missing, overall = without_grades(options, store), OVERALL
    if judgements and all(row.all is None for row in judgements):
        overall, unverified = "clip", f"the verifiers judge images of {IMAGE_SIZE}×{IMAGE_SIZE} pixels alone"
        missing |= {name: unverified for name, column in COLUMNS.items() if column.field in ("facts", "all")}
    results = ComparisonResults(
        judgements=judgements, overall=overall, costs=store.costs(), guidance_scale=options.guidance_scales[0],
        steps=options.steps, search_multiple=max(options.search_multiples), sweeps=_sweeps(options, store, trainings),
        curves=[TrainingCurve(t.system, t.seed, read_metrics(trainings.folder(t))) for t in done],
        diversity=_diversity(store), trials=trials,
        notes=[*notes, *grader_note(options)], missing=missing,
        command=command, commit=told["commit"],
        machine=f"{_cpu()}, {machine.cpus()} CPUs, {machine.gpus() or 'no'} GPU; Python {told['python']}, "
        + ", ".join(f"{name} {told['packages'][name]}" for name in ("torch", "ray", "deepspeed", "diffusers")),
    )  # fmt: skip
    return write_report(folder, results)


def alarms(options: CompareOptions, store: Store) -> list[str]:
    """Which systems raised the reward while the verifiers fell.

    Args:
        options: The comparison's options, resolved.
        store: What was measured.

    Returns:
        A sentence for each system and guidance scale at which it is sure.
    """
    found = divergences(Scores(store.judgements()), options.steps)
    return [one.sentence for one in found if one.status == "diverging"]


def _sweeps(options: CompareOptions, store: Store, trainings: Trainings) -> list[Sweep]:
    """The sweeps of which at least two values were judged; n = 1 is the paper's, Diffusion-DPO."""
    found = []
    for name in options.sweeps:
        systems = {value: sweep_system(name, value, trainings.own("rlhf", name)) for value in SWEPT[name]}
        known = {row.system for row in store.judgements()}
        measured = {value: system for value, system in systems.items() if system in known}
        if len(measured) > 1:
            found.append(Sweep(NAMES[name], SYMBOLS[name], measured))
    return found


def sweep_system(name: str, value: float, own: float) -> str:
    """A system's name within a sweep.

    Args:
        name: What is varied.
        value: Its value.
        own: The value that RLHF sharpening has in this comparison.

    Returns:
        The name; RLHF sharpening itself at its own value, which is not trained twice. The paper's n = 1 gives
        Diffusion-DPO's numbers, so that system stands for it.
    """
    if value == own:
        return "rlhf"
    return "dpo" if (name, value) == ("branches", 1) else f"rlhf, {SYMBOLS[name]} = {value:g}"


def _diversity(store: Store) -> dict[str, Diversity]:
    """Diversity of each system beside the base, prompts of all seeds together."""
    features = store.features()
    systems = dict.fromkeys(name.rpartition("-s")[0] for name in features)
    found = {}
    for system in systems:
        seeds = [name for name in features if name.rpartition("-s")[0] == system]
        paired = [(features[name], features[f"base-s{name.rpartition('-s')[2]}"]) for name in seeds
                  if f"base-s{name.rpartition('-s')[2]}" in features]  # fmt: skip
        if system != "base" and paired:
            own, base = (np.concatenate(sides) for sides in zip(*paired, strict=True))
            found[system] = diversity(own, base)
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
