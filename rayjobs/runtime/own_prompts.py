"""The user's own prompts: drawn before training, at every look and after it, from the same noise every time.

They are there to be looked at, with what the reward says of each image. No verifier knows what such a prompt claims,
and nothing keeps it out of the training prompts: so there are no facts here, and the alarm does not go by them.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from rayjobs.options import JobOptions
from rayjobs.runtime.evaluation import EvaluationPart, EvaluationTask, plan
from rayjobs.runtime.look_grids import COLUMNS, write_look
from rayjobs.runtime.report import evaluation_batch
from sharpening.evaluation.files import row_columns, write_parquet
from sharpening.evaluation.run_folder import OWN_PROMPTS, RunFolder
from sharpening.rewards.terms import reward_column
from sharpening.shapes.benchmark import BenchmarkPrompt

Row = dict[str, Any]
CATEGORY = "own"


def own_grid_name(update: int) -> str:
    """File name of a grid of the user's own prompts.

    Args:
        update: Updates made when the images were drawn; 0 for the base model's.

    Returns:
        Such as `own_prompts_000007.png`.
    """
    return f"own_prompts_{update:06d}.png"


class OwnPrompts:
    """The user's own prompts during a run.

    Args:
        options: The run's options.
        folder: The run folder; what an earlier start of the run found there is gone on from.
        headline: What a task's reward is for each prompt, from what several rewards say; the reward itself by default.

    Attributes:
        tasks: What actors draw; none where the user named no prompt.
    """

    def __init__(
        self, options: JobOptions, folder: RunFolder, headline: Callable[[EvaluationPart], list[float | None]] | None
    ) -> None:  # fmt: skip
        self._options, self._folder = options, folder
        self._headline = headline or (lambda part: part.rewards)
        self._each = options.num_validation_images or 1
        self._rows: list[Row] = folder.own_prompts()
        self._newest: list[Row] = []
        self._truncated = 0
        prompts = [BenchmarkPrompt(text, CATEGORY, ()) for text in options.validation_prompt for _ in range(self._each)]
        steps = options.eval_steps or options.rollout_steps
        # A place seeds its noise: a prompt that is added at the end leaves the others' images as they were.
        self.tasks: list[EvaluationTask] = plan(
            list(enumerate(prompts)), (options.guidance_scale,), steps, evaluation_batch(options), len(prompts), False
        )  # fmt: skip

    @property
    def begun(self) -> bool:
        """Whether the base model's images are there already, or there is nothing to draw."""
        drawn = [row["prompt"] for row in self._rows if row["update"] == 0]
        return drawn == [prompt.prompt for task in self.tasks for prompt in task.prompts]

    def split(self, parts: Sequence[EvaluationPart]) -> tuple[list[EvaluationPart], list[EvaluationPart]]:
        """Tell what others asked for from the user's own prompts.

        Args:
            parts: What tasks found that were asked together, in order.

        Returns:
            What the others found, and what was found of the user's own prompts.
        """
        own = [part for part in parts if part.task in self.tasks]
        return [part for part in parts if part.task not in self.tasks], own

    def take(self, parts: list[EvaluationPart]) -> None:
        """Keep what was found: a row an image, and the grid.

        Args:
            parts: What the tasks found, at least one.
        """
        version = parts[0].version
        rows = []
        for part in parts:
            for place, reward in enumerate(self._headline(part)):
                own = {reward_column(name): values[place] for name, values in part.parts.items()}
                index, prompt = part.task.indices[place], part.task.prompts[place].prompt
                rows.append({"update": version, "prompt": prompt, "image": index % self._each, "reward": reward, **own})
        others = [row for row in self._rows if row["update"] != version]
        self._rows = sorted([*others, *rows], key=lambda row: row["update"])
        self._newest = rows
        self._truncated = sum(part.truncated for part in parts) // self._each
        write_parquet(self._folder.path / OWN_PROMPTS, row_columns(self._rows))
        columns = COLUMNS // self._each * self._each or COLUMNS  # a prompt's images stand in one row, if they can
        guidance, seed = self._options.guidance_scale, self._options.seed
        write_look(self._folder, parts, guidance, seed, self._headline, own_grid_name(version), columns)

    @property
    def updates(self) -> int:
        """Updates made when the newest images were drawn."""
        return int(self._newest[0]["update"])

    @property
    def means(self) -> dict[str, float]:
        """Means of the newest images' rewards, over those that have one, by column."""
        names = [name for name in self._newest[0] if name.startswith("reward")]
        known = {name: [row[name] for row in self._newest if row[name] is not None] for name in names}
        return {name: fmean(values) for name, values in known.items() if values}

    def told(self) -> str:
        """The newest images in one line, for the run's log."""
        count, scored = len(self._newest), sum(row["reward"] is not None for row in self._newest)
        found = f"reward {self.means['reward']:.2f}" if scored else "none could be scored"
        of = f", {scored} of {count} images" if 0 < scored < count else ""
        cut = f"; {self._truncated} of them longer than the model reads, and cut" if self._truncated else ""
        return f"own prompts after update {self.updates}: {found}{of}{cut}"
