"""The user's own prompts, drawn at every look with their rewards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayjobs.options import RLHFOptions
from rayjobs.runtime.evaluation import EvaluationPart, draw
from rayjobs.runtime.held_out import HeldOut
from rayjobs.runtime.own_prompts import OwnPrompts, own_grid_name
from sharpening.evaluation.run_folder import RunFolder
from sharpening.methods import load_method
from sharpening.rewards.combined import Panel
from sharpening.sampling import sample
from sharpening.seeds import noise

CAT, DOG = "a cat, asleep", "a dog"


def own_prompts(folder: Path, images: int = 2, *texts: str, **changes: Any) -> OwnPrompts:
    texts = texts or (CAT, DOG)
    options = RLHFOptions(validation_prompt=texts, num_validation_images=images, **changes)
    return OwnPrompts(options, RunFolder(folder), lambda part: part.rewards)


def drawn(own: OwnPrompts, version: int, rewards: list[float | None], truncated: int = 0) -> list[EvaluationPart]:
    """An answer with these rewards, its images in shades of their own."""
    found, left = [], list(rewards)
    for task in own.tasks:
        told, left = left[: len(task.indices)], left[len(task.indices) :]
        images = {i: np.full((64, 64, 3), 60 + 10 * i, np.uint8) for i in task.indices}
        parts = {"clip": told, "Mine": [1.0] * len(told)}
        found.append(EvaluationPart(task, told, [None] * len(told), images, 0, {}, version, parts, truncated))
    assert not left
    return found


def test_every_prompt_gets_its_images_and_no_verifier(tmp_path: Path) -> None:
    own = own_prompts(tmp_path, 2, guidance_scale=1.5, eval_steps=7)
    (task,) = own.tasks
    assert [prompt.prompt for prompt in task.prompts] == [CAT, CAT, DOG, DOG]
    assert len(set(task.indices)) == 4  # each from noise of its own
    assert task.keep == set(task.indices)
    assert (task.guidance_scale, task.steps, task.verify) == (1.5, 7, False)
    assert {prompt.facts for prompt in task.prompts} == {()}
    longer = own_prompts(tmp_path, 2, CAT, DOG, "a third").tasks[0]
    assert longer.indices[:4] == task.indices  # those there were keep their noise
    large = own_prompts(tmp_path, 2, resolution=1024, rollout_batch_size=3).tasks
    assert [len(part.indices) for part in large] == [3, 1]
    assert not OwnPrompts(RLHFOptions(), RunFolder(tmp_path), None).tasks


def test_rewards_are_kept_by_image_and_told(tmp_path: Path) -> None:
    own = own_prompts(tmp_path)
    assert not own.begun
    own.take(drawn(own, 0, [1.0, 2.0, 3.0, 6.0]))
    assert own.begun
    assert (own.updates, own.means) == (0, {"reward": 3.0, "reward_clip": 3.0, "reward_Mine": 1.0})
    assert own.told() == "own prompts after update 0: reward 3.00"
    own.take(drawn(own, 5, [None, 2.0, 3.0, None], truncated=2))
    assert (
        own.told()
        == "own prompts after update 5: reward 2.50, 2 of 4 images; 1 of them longer than the model reads, and cut"
    )
    again = own_prompts(tmp_path)  # another start of the run
    assert again.begun
    again.take(drawn(again, 5, [None] * 4))
    assert again.told() == "own prompts after update 5: none could be scored"
    assert again.means == {"reward_Mine": 1.0}
    rows = RunFolder(tmp_path).own_prompts()
    assert [(row["update"], row["prompt"], row["image"], row["reward"]) for row in rows] == [
        (0, CAT, 0, 1.0), (0, CAT, 1, 2.0), (0, DOG, 0, 3.0), (0, DOG, 1, 6.0),
        (5, CAT, 0, None), (5, CAT, 1, None), (5, DOG, 0, None), (5, DOG, 1, None),
    ]  # fmt: skip
    assert set(rows[0]) == {"update", "prompt", "image", "reward", "reward_clip", "reward_Mine"}  # no fact in sight
    assert not own_prompts(tmp_path, 2, CAT, "a bird").begun  # other prompts than that start had


@pytest.mark.parametrize(("images", "columns"), [(1, 2), (2, 4), (3, 6), (4, 4), (6, 6), (8, 6)])
def test_a_prompts_images_stand_in_one_row(tmp_path: Path, images: int, columns: int) -> None:
    own = own_prompts(tmp_path, images)
    own.take(drawn(own, 3, [2.0] * (2 * images)))
    with Image.open(tmp_path / own_grid_name(3)) as grid:
        assert grid.text["Description"].splitlines() == [CAT] * images + [DOG] * images
        assert grid.width == 12 + columns * (128 + 12)
        pixels = np.asarray(grid)
    assert (pixels == 60).all(-1).sum() >= 128 * 128
    green, red = ((pixels == colour).all(-1).any() for colour in ((26, 135, 84), (200, 45, 40)))
    assert not green
    assert not red  # no marks, nor frames that say right or wrong


def test_own_prompts_are_drawn_beside_held_out_ones_and_told_apart(tmp_path: Path) -> None:
    own = own_prompts(tmp_path)
    held_out = HeldOut(RLHFOptions(validation_steps=2, validation_prompts=6), tmp_path)
    mine = drawn(own, 3, [1.0] * 4)
    others = [EvaluationPart(t, [9.0] * 6, [(True,)] * 6, version=3) for t in held_out.tasks]
    assert own.split([*others, *mine]) == (others, mine)
    held_out.take(others, {"reward": 1.0})
    own.take(mine)
    (row,) = RunFolder(tmp_path).validation()
    assert (row["reward"], row["facts"]) == (9.0, 1.0)  # the alarm goes by held-out prompts alone


def test_images_are_those_of_the_sampler_from_the_places_noise(policy: Any, brightness: Any, tmp_path: Path) -> None:
    import torch

    own = own_prompts(tmp_path, 1, "a red circle", "a blue cross " * 40, rollout_steps=3)
    (task,) = own.tasks
    part = draw(policy, load_method("rlhf", RLHFOptions().method_options()), Panel({"": brightness}), task, 7)
    start = torch.stack([noise(policy.latent_shape, 7, "evaluation", place) for place in (0, 1)])
    with torch.no_grad():
        expected = policy.decode(sample(policy, policy.encode([p.prompt for p in task.prompts]), start, 3, 1.0))
    assert np.array_equal(np.stack([part.images[0], part.images[1]]), expected)
    assert part.facts == [None, None]
    assert part.rewards == pytest.approx(brightness(expected, ["", ""]).values.tolist())
    assert part.truncated == 1
