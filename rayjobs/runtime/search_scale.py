"""The scale on which a search compares several rewards: their scores of a few images that nobody searched for.

A search keeps the best of images that were scored in different calls, so its rewards must mean the same in all of them.
The sample is drawn once, from noise of its own, and stays in the run folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayjobs.comparison.tasks import Model, ScoreTask
from rayjobs.errors import RunStopped
from rayjobs.options.search import SearchJobOptions
from sharpening.evaluation.files import write_json
from sharpening.slots import tasks

FILE = "scale.json"
IMAGES = 48  # about what a mean and a deviation can be told from


def scale_tasks(options: SearchJobOptions, model: Model, items: Sequence[int], texts: Sequence[str]) -> list[ScoreTask]:
    """Cut the sample into tasks: the first prompts, several images each where there are fewer prompts than images.

    Args:
        options: The search's options.
        model: The base model.
        items: Places of the prompts.
        texts: The prompts.

    Returns:
        Tasks of `rollout_batch_size` images.
    """
    found = []
    for part in tasks(range(IMAGES), options.rollout_batch_size):
        rows, images = zip(*((place % len(items), place // len(items)) for place in part), strict=True)
        own = tuple(items[row] for row in rows), tuple(texts[row] for row in rows)
        found.append(ScoreTask(options.seed, model, *own, images, options.guidance_scale, options.rollout_steps))
    return found


def measure_scale(folder: Path, actors: Any, wanted: Sequence[ScoreTask], names: Sequence[str]) -> dict[str, Any]:
    """Have the sample drawn and scored, or read what was measured before.

    Args:
        folder: The run folder.
        actors: The pool.
        wanted: From `scale_tasks`.
        names: The rewards.

    Returns:
        `scores`: of the sample's images by each reward's name; `nfe`: what drawing them cost.

    Raises:
        RunStopped: If a reward could score none of them.
    """
    path = folder / FILE
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = list(actors.each(wanted))
    scores = {name: [v for answer in found for v in answer.parts[name] if v is not None] for name in names}
    for name, values in scores.items():
        if not values:
            raise RunStopped(f"the reward '{name}' could score none of {IMAGES} images", "another --reward")
    scale = {"scores": scores, "nfe": sum(answer.nfe for answer in found)}
    write_json(path, scale)
    return scale
