"""A look at held-out prompts every few updates, and the alarm when only the training reward rises."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rayjobs.options import JobOptions
from rayjobs.runtime.evaluation import EvaluationPart, EvaluationTask, choose, plan
from rayjobs.runtime.look_grids import GRID
from rayjobs.runtime.report import evaluation_batch, verified
from sharpening.evaluation.comparison.alarm import Checkpoint, Finding, watch
from sharpening.evaluation.files import row_columns, write_parquet
from sharpening.evaluation.run_folder import VALIDATION, RunFolder
from sharpening.rewards.terms import reward_column

Row = dict[str, Any]
Headline = Callable[[EvaluationPart], list[float | None]]


class HeldOut:
    """Held-out prompts during training: none is a benchmark prompt, so that nothing is tuned on what is reported.

    Args:
        options: The run's options.
        folder: The run folder; what an earlier start of the run found is gone on from.
        headline: What a task's reward is for each prompt, from what several rewards say; the reward itself by default.
    """

    def __init__(self, options: JobOptions, folder: Path, headline: Headline | None = None) -> None:
        self._options, self._path = options, folder / VALIDATION
        self._headline = headline or (lambda part: part.rewards)
        self._rows: list[Row] = RunFolder(folder).validation()
        self._alarmed = False
        self._next = 0  # update at which to look
        self.tasks: list[EvaluationTask] = []
        if options.validation_steps and not options.skip_evaluation:
            from sharpening.shapes import assets

            chosen = choose(assets.validation_benchmark(), options.validation_prompts)
            steps = options.eval_steps or options.rollout_steps
            batch = evaluation_batch(options)
            self.tasks = plan(chosen, (options.guidance_scale,), steps, batch, GRID, verified(options))

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
        reward = _mean(reward for part in parts for reward in self._headline(part))
        own = {
            reward_column(name): _mean(value for part in parts for value in part.parts[name]) for name in parts[0].parts
        }
        shares = [sum(facts) / len(facts) for part in parts for facts in part.facts if facts]
        self._rows = [row for row in self._rows if row["update"] < version]
        row: Row = {
            "update": version, "reward": reward, "facts": _mean(shares),
            "training_reward": metrics.get("reward_level", metrics.get("reward")), **own,
        }  # fmt: skip
        finding = self._finding([*self._rows, row])
        self._rows.append(row | {"alarm": finding is not None and finding.status == "diverging"})
        write_parquet(self._path, row_columns(self._rows))
        self._next = version + self._options.validation_steps
        if finding is None or finding.status != "diverging" or self._alarmed:
            return ""
        self._alarmed = True
        return finding.sentence

    @property
    def rows(self) -> list[Row]:
        """The looks so far, as `validation.parquet` has them."""
        return self._rows

    @property
    def newest(self) -> Row:
        """The newest look."""
        return self._rows[-1]

    def told(self) -> str:
        """The newest look in one line, for the run's log."""
        newest = self._rows[-1]
        found = {"reward": (newest["reward"], 2), "facts": (newest["facts"], 3)}
        numbers = [f"{name} {value:.{digits}f}" for name, (value, digits) in found.items() if value is not None]
        return f"held-out prompts after update {newest['update']}: {', '.join(numbers) or 'none could be scored'}"

    def gauges(self) -> Row:
        """The newest look under the names of `rayjobs.runtime.gauges`."""
        newest = self._rows[-1]
        told = {f"held_out_{name}": value for name, value in newest.items() if name.startswith(("reward", "facts"))}
        return told | {"alarm": float(newest["alarm"])}

    @staticmethod
    def _finding(rows: list[Row]) -> Finding | None:
        known = [row for row in rows if row["training_reward"] is not None and row["facts"] is not None]
        history = [Checkpoint(row["update"], row["training_reward"], row["facts"]) for row in known]
        return watch(history) if history else None


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
