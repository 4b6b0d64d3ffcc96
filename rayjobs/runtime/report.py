"""What a run tells at its end: evaluation rows, sample grids, curve, cost, summary, table."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayjobs.options import JobOptions
from rayjobs.runtime.evaluation import EvaluationPart, EvaluationTask, choose, grid_images, plan, results
from sharpening.evaluation.run_folder import EVALUATION, RunFolder
from sharpening.evaluation.summary import PromptResult, compare_results, summarise
from sharpening.evaluation.table import final_table

EVALUATION_BATCH = 24  # images a task
GRID = 24  # images in a sample grid
VERIFIED_RESOLUTION = 64  # pixels; the verifiers judge images of the embedded world
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
        self._cost: list[EvaluationPart] = []
        self._accounts: list[tuple[str, int, dict[str, float], int]] = []
        self.tasks: list[EvaluationTask] = [] if options.skip_evaluation else _tasks(options)
        wanted = {(index, task.guidance_scale) for task in self.tasks for index in task.indices}
        self.before = _read(folder.path / EVALUATION, wanted)
        self.after: list[PromptResult] = []

    def take(self, phase: Literal["before", "after"], parts: list[EvaluationPart]) -> None:
        """Keep what the tasks found, and write it.

        Args:
            phase: Before or after training.
            parts: What the tasks found, in order.
        """
        from sharpening.evaluation.grids import comparison_grid, sample_grid

        rows = results(parts, phase)
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
        grid = sample_grid(np.stack(list(images.values())), captions, marks, title)
        self._folder.write_image(f"samples_{phase}.png", grid, captions)
        if phase == "after" and "before" in self._pictures:  # a resumed run has only the numbers of before
            old, new = (np.stack(list(self._pictures[side].values())) for side in ("before", "after"))
            grid = comparison_grid(old, new, captions, self._marks["before"], marks, title.removeprefix("after "))
            self._folder.write_image("samples_compared.png", grid, captions)

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
        reward = UNITS.get(options.reward, options.reward)
        if metrics.rows:
            metrics.write_table()
            folder.write_curve(metrics.rows, reward, folder.validation())
        rows = [*self.before, *self.after]
        extra: dict[str, Any] = {"seed": options.seed, "seconds_training": sum(row["seconds"] for row in metrics.rows)}
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
        return final_table(found, options.guidance_scale, options.eval_steps or options.rollout_steps, reward)


def _tasks(options: JobOptions) -> list[EvaluationTask]:
    """The run's evaluation, cut into tasks."""
    from sharpening.shapes import assets

    benchmark = assets.benchmark()
    chosen = choose(benchmark, options.eval_prompts)
    fewer = choose(benchmark, min(options.eval_prompts, options.eval_other_prompts))
    own, *others = options.guidance_scales
    steps = options.eval_steps or options.rollout_steps
    batch = EVALUATION_BATCH
    verify = verified(options)
    return [*plan(chosen, (own,), steps, batch, GRID, verify), *plan(fewer, others, steps, batch, 0, verify)]


def verified(options: JobOptions) -> bool:
    """Whether the embedded world's verifiers can judge the model's images."""
    return options.resolution in (None, VERIFIED_RESOLUTION)


def _read(path: Path, wanted: set[tuple[int, float]]) -> list[PromptResult]:
    """The base model's evaluation from an earlier start of the run, if it is the wanted one."""
    if not path.exists():
        return []
    import pyarrow.parquet as pq

    rows = [PromptResult(**row) for row in pq.read_table(path).to_pylist() if row["phase"] == "before"]
    return rows if {(row.index, row.guidance_scale) for row in rows} == wanted else []
