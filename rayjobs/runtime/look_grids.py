"""A small sample grid for each look at held-out prompts: the same prompts from the same noise, as the model learns.

The images are those that the look has judged anyway, so that a grid costs no network evaluation and changes nothing.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from rayjobs.runtime.evaluation import EvaluationPart, grid_images
from sharpening.evaluation.run_folder import RunFolder

GRID = 12  # images in a look's grid
COLUMNS = 6  # of them in a row
SIDE = 192  # pixels, the longest side of an image in it
MARK = 11  # pixels of a mark: eight of them fit beneath an image of 128


def look_name(update: int) -> str:
    """File name of a look's grid.

    Args:
        update: Updates made when the images were drawn.

    Returns:
        Such as `samples_000007.png`.
    """
    return f"samples_{update:06d}.png"


def reward_note(reward: float | None) -> str:
    """What stands beneath an image.

    Args:
        reward: Its reward, `None` where scoring failed.

    Returns:
        Such as `reward 58.35`.
    """
    return "not scored" if reward is None else f"reward {reward:.2f}"


def write_look(
    folder: RunFolder,
    parts: list[EvaluationPart],
    guidance_scale: float,
    seed: int,
    headline: Callable[[EvaluationPart], list[float | None]] = lambda part: part.rewards,
    name: str | None = None,
    columns: int = COLUMNS,
) -> None:
    """Write a look's grid, each image with its reward; nothing where its tasks kept no image.

    Args:
        folder: The run folder.
        parts: What the tasks found.
        guidance_scale: Guidance that the images were drawn with.
        seed: The run's seed.
        headline: What a task's reward is for each prompt.
        name: The grid's file name; a look's by default.
        columns: Images in a row.
    """
    from sharpening.evaluation.grids import GridStyle, sample_grid

    images = grid_images(parts)
    if not images:
        return
    prompts = {
        i: prompt.prompt for part in parts for i, prompt in zip(part.task.indices, part.task.prompts, strict=True)
    }
    facts = {i: found for part in parts for i, found in zip(part.task.indices, part.facts, strict=True)}
    rewards = {i: reward for part in parts for i, reward in zip(part.task.indices, headline(part), strict=True)}
    update = parts[0].version
    steps = parts[0].task.steps
    captions = [prompts[i] for i in images]
    marks = [facts[i] for i in images] if any(facts[i] for i in images) else None
    title = f"after update {update}, guidance {guidance_scale:g}, {steps} steps, seed {seed}"
    notes = [reward_note(rewards[i]) for i in images]
    pictures = np.stack([_small(image) for image in images.values()])
    grid = sample_grid(pictures, captions, marks, title, GridStyle(128, columns, mark=MARK), notes)
    folder.write_image(name or look_name(update), grid, captions)


def _small(image: np.ndarray) -> np.ndarray:
    """An image, uint8 [H, W, 3], no larger than a grid's cell should be."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
