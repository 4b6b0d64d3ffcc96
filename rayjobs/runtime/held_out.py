"""A look at held-out prompts every few updates, and the alarm when only the training reward rises."""

from pathlib import Path
from typing import Any

from rayjobs.options import JobOptions
from rayjobs.runtime.evaluation import EvaluationPart, EvaluationTask, choose, plan
from rayjobs.runtime.look_grids import GRID
from rayjobs.runtime.report import EVALUATION_BATCH, verified
from sharpening.evaluation.comparison.alarm import Checkpoint, Finding, watch
from sharpening.evaluation.files import write_parquet
from sharpening.evaluation.run_folder import VALIDATION

Row = dict[str, Any]


class HeldOut:
    """Held-out prompts during training: none is a benchmark prompt, so that nothing is tuned on what is reported.

    Args:
        options: The run's options.
        folder: The run folder; what an earlier start of the run found is gone on from.
    """

    def __init__(self, options: JobOptions, folder: Path) -> None:
        self._options, self._path = options, folder / VALIDATION
        self._rows: list[Row] = []
        self._alarmed = False
        self._next = 0  # update at which to look
        self.tasks: list[EvaluationTask] = []
        if options.validation_steps and not options.skip_evaluation:
            from sharpening.shapes import assets

            chosen = choose(assets.validation_benchmark(), options.validation_prompts)
            steps = options.eval_steps or options.rollout_steps
            self.tasks = plan(chosen, (options.guidance_scale,), steps, EVALUATION_BATCH, GRID, verified(options))

    def due(self, updates: int) -> bool:
        """Whether it is time to look.

        Args:
            updates: Updates made.

        Returns:
            Whether it is.
        """
        return bool(self.tasks) and updates >= self._next and updates < self._options.max_train_steps

    def take(self, parts: list[EvaluationPart], metrics: Row) -> str:
        """Keep what was found.

        Args:
            parts: What the tasks found.
            metrics: The newest update's metrics.

        Returns:
            A sentence for the log when the alarm is raised for the first time, else nothing.
        """
        version = parts[0].version
        rewards = [reward for part in parts for reward in part.rewards if reward is not None]
        shares = [sum(facts) / len(facts) for part in parts for facts in part.facts if facts]
        self._rows = [row for row in self._rows if row["update"] < version]
        row: Row = {
            "update": version, "reward": sum(rewards) / len(rewards) if rewards else None,
            "facts": sum(shares) / len(shares) if shares else None, "training_reward": metrics.get("reward"),
        }  # fmt: skip
        finding = self._finding([*self._rows, row])
        self._rows.append(row | {"alarm": finding is not None and finding.status == "diverging"})
        write_parquet(self._path, {name: [entry[name] for entry in self._rows] for name in self._rows[0]})
        self._next = version + self._options.validation_steps
        if finding is None or finding.status != "diverging" or self._alarmed:
            return ""
        self._alarmed = True
        return finding.sentence

    def told(self) -> str:
        """The newest look in one line, for the run's log."""
        newest = self._rows[-1]
        found = {"reward": (newest["reward"], 2), "facts": (newest["facts"], 3)}
        numbers = [f"{name} {value:.{digits}f}" for name, (value, digits) in found.items() if value is not None]
        return f"held-out prompts after update {newest['update']}: {', '.join(numbers) or 'none could be scored'}"

    def gauges(self) -> Row:
        """The newest look under the names of `rayjobs.runtime.gauges`."""
        newest = self._rows[-1]
        return {
            "held_out_reward": newest["reward"], "held_out_facts": newest["facts"], "alarm": float(newest["alarm"])
        }  # fmt: skip

    @staticmethod
    def _finding(rows: list[Row]) -> Finding | None:
        known = [row for row in rows if row["training_reward"] is not None and row["facts"] is not None]
        history = [Checkpoint(row["update"], row["training_reward"], row["facts"]) for row in known]
        return watch(history) if history else None
