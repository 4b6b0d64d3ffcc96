"""What a run tells at its end: evaluation rows, sample grids, curve, cost, summary, table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayjobs.options import JobOptions
from rayjobs.runtime.evaluation import EvaluationPart, EvaluationTask, choose, grid_images, plan, results
from rayjobs.runtime.look_grids import reward_note
from sharpening.evaluation.run_folder import EVALUATION, RunFolder
from sharpening.evaluation.summary import PromptResult, compare_results, read_results, summarise
from sharpening.evaluation.table import final_table
from sharpening.rewards.statistics import Moments, Statistics
from sharpening.rewards.terms import reward_column, worded
from sharpening.shapes.scene import IMAGE_SIZE

EVALUATION_BATCH = 24  # images a task
GRID = 24  # images in a sample grid
UNITS = {"clip": "CLIP score (cosine × 100)"}


class Report:
    """One run's evaluation (tasks, and what they found before and after) and the files that explain the run.

    Args:
        options: The run's options.
        folder: The run folder; an evaluation of the base model that it holds already is used again.
    """

    def __init__(self, options: JobOptions, folder: RunFolder) -> None:
        self._options, self._folder = options, folder
        self._pictures: dict[str, dict[int, np.ndarray]] = {}
        self._marks: dict[str, list[Any] | None] = {}
        self._notes: dict[str, list[str]] = {}
        self._cost: list[EvaluationPart] = []
        self._accounts: list[tuple[str, int, dict[str, float], int]] = []
        self.tasks: list[EvaluationTask] = [] if options.skip_evaluation else _tasks(options)
        wanted = {(index, task.guidance_scale) for task in self.tasks for index in task.indices}
        self._mix = options.mix
        # Rewards with columns of their own, beside the headline.
        self._parts = (*(self._mix.names if self._mix else ()), *(term.name for term in options.watched))
        self.before = _read(folder.path / EVALUATION, wanted, self._parts)
        self._scale = self._base_scale(self.before)
        self.after: list[PromptResult] = []

    def take(self, phase: Literal["before", "after"], parts: list[EvaluationPart]) -> None:
        """Keep what the tasks found, and write it.

        Args:
            phase: Before or after training.
            parts: What the tasks found, in order.
        """
        from sharpening.evaluation.grids import comparison_grid, sample_grid

        rows = results(parts, phase)
        if phase == "before":
            self._scale = self._base_scale(rows)
        rows = [replace(row, reward=self._headline(row.reward, row.parts)) for row in rows]
        setattr(self, phase, rows)
        self._cost.extend(parts)
        self._folder.write_evaluation([*self.before, *self.after])
        images = grid_images(parts)
        if not images:
            return
        self._pictures[phase] = images
        first = {row.index: row for row in reversed(rows)}
        facts = {index: facts for part in parts for index, facts in zip(part.task.indices, part.facts, strict=True)}
        marks = [facts[index] for index in images] if any(facts[index] for index in images) else None
        scale = self._options.guidance_scale
        title = f"{phase} sharpening, guidance {scale:g}, {self._options.eval_steps} steps, seed {self._options.seed}"
        self._marks[phase] = marks
        captions = [first[i].prompt for i in images]
        self._notes[phase] = [reward_note(first[i].reward) for i in images]
        grid = sample_grid(np.stack(list(images.values())), captions, marks, title, notes=self._notes[phase])
        self._folder.write_image(f"samples_{phase}.png", grid, captions)
        if phase == "after" and "before" in self._pictures:  # a resumed run has only the numbers of before
            old, new = (np.stack(list(self._pictures[side].values())) for side in ("before", "after"))
            notes = list(zip(self._notes["before"], self._notes["after"], strict=True))
            title = title.removeprefix("after ")
            grid = comparison_grid(old, new, captions, self._marks["before"], marks, title, notes=notes)
            self._folder.write_image("samples_compared.png", grid, captions)

    def headline(self, part: EvaluationPart) -> list[float | None]:
        """What a task's reward is for each prompt: several rewards on the scale of the base model's evaluation.

        Args:
            part: What the task found.

        Returns:
            One a prompt, `None` where a reward has no score.
        """
        return [
            self._headline(reward, {name: values[place] for name, values in part.parts.items()})
            for place, reward in enumerate(part.rewards)
        ]

    def _headline(self, reward: float | None, parts: Mapping[str, float | None]) -> float | None:
        """A reward as it is; several, from their own scores, on the base model's scale: the same before and after."""
        if self._mix is None or reward is None:
            return reward
        values = {name: value for name in self._mix.names if (value := parts[name]) is not None}
        return float(self._mix.on_scale(values, self._scale))

    def _base_scale(self, rows: list[PromptResult]) -> Statistics:
        """Statistics of each of several rewards over the base model's evaluation, at the guidance of the training."""
        own = [row.parts for row in rows if row.guidance_scale == self._options.guidance_scale]
        names = self._mix.names if self._mix else ()
        return {name: Moments.of([value for row in own if (value := row[name]) is not None]) for name in names}

    def count(self, parts: list[EvaluationPart]) -> None:
        """Add what a look during training cost.

        Args:
            parts: What the tasks found.
        """
        self._cost.extend(parts)

    def account(self, stage: str, nfe: int, seconds: dict[str, float], images: int) -> None:
        """Add what was done beside the updates to the run's cost.

        Args:
            stage: What for.
            nfe: Network evaluations.
            seconds: Time by stage.
            images: Images scored.
        """
        self._accounts.append((stage, nfe, seconds, images))

    def finish(self, updates: int, seconds: float) -> str:
        """Write everything that explains the run.

        Args:
            updates: Updates made.
            seconds: Wall time of this start of the run.

        Returns:
            The final table; empty when nothing was evaluated.
        """
        options, folder = self._options, self._folder
        metrics = folder.metrics()
        cost = folder.read_cost()
        for part in self._cost:
            cost.add_nfe("evaluate", part.nfe)
            cost.add_seconds(part.seconds)
        for stage, nfe, spent, images in self._accounts:
            cost.add_nfe(stage, nfe)
            cost.add_seconds({f"{stage}_{name}": value for name, value in spent.items()})
            cost.add_images(images)
        cost.add_seconds("wall", seconds)
        cost.note_memory("driver")
        folder.write_cost(cost)
        reward = self._unit()
        if metrics.rows:
            metrics.write_table()
            folder.write_curve(metrics.rows, reward, folder.validation(), self._mix.names if self._mix else ())
        rows = [*self.before, *self.after]
        extra: dict[str, Any] = {"seed": options.seed, "seconds_training": sum(row["seconds"] for row in metrics.rows)}
        if self._parts:
            extra["rewards"] = {term.name: {"weight": term.weight, "watched": False} for term in options.terms}
            extra["rewards"] |= {term.name: {"weight": None, "watched": True} for term in options.watched}
        folder.write_summary(
            summarise(
                rows, options.guidance_scale, updates=updates, seconds=cost.seconds["wall"], nfe=cost.total_nfe,
                extra=extra,
            )
        )  # fmt: skip
        if not self.after:
            return ""
        scales = dict.fromkeys(row.guidance_scale for row in rows)
        found = {scale: compare_results(rows, scale) for scale in scales}
        steps = options.eval_steps or options.rollout_steps
        columns = [reward_column(name) for name in self._parts]
        table = final_table(found, options.guidance_scale, steps, reward, columns)
        watched = ", ".join(term.name for term in options.watched)
        return f"{table}; only watched: {watched}" if watched else table

    def _unit(self) -> str:
        """The headline's name and unit."""
        terms = self._options.terms
        if self._mix is None:
            return UNITS.get(terms[0].name, terms[0].name)
        if self._mix.alone:
            return worded(terms)
        return f"{worded(terms)}, each in standard deviations of the base model's scores"


def _tasks(options: JobOptions) -> list[EvaluationTask]:
    """The run's evaluation, cut into tasks."""
    from sharpening.shapes import assets

    benchmark = assets.benchmark()
    chosen = choose(benchmark, options.eval_prompts)
    fewer = choose(benchmark, min(options.eval_prompts, options.eval_other_prompts))
    own, *others = options.guidance_scales
    steps = options.eval_steps or options.rollout_steps
    batch = evaluation_batch(options)
    verify = verified(options)
    return [*plan(chosen, (own,), steps, batch, GRID, verify), *plan(fewer, others, steps, batch, 0, verify)]


def evaluation_batch(options: JobOptions) -> int:
    """Images of an evaluation task, which are drawn together.

    Args:
        options: The run's options.

    Returns:
        A fixed number for the embedded world's small images; for larger ones as many as a rollout task has prompts,
        which is what the user knows to fit.
    """
    return EVALUATION_BATCH if verified(options) else min(EVALUATION_BATCH, options.rollout_batch_size)


def verified(options: JobOptions) -> bool:
    """Whether the embedded world's verifiers can judge the model's images; none of a size that nothing tells."""
    return options.resolution == IMAGE_SIZE


def _read(path: Path, wanted: set[tuple[int, float]], parts: Sequence[str]) -> list[PromptResult]:
    """The base model's evaluation from an earlier start of the run, if it is the wanted one by the wanted rewards."""
    if not path.exists():
        return []
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if not {reward_column(name) for name in parts} <= set(table.column_names):
        return []
    rows = read_results([row for row in table.to_pylist() if row["phase"] == "before"], parts)
    return rows if {(row.index, row.guidance_scale) for row in rows} == wanted else []
