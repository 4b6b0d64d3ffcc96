"""The look at held-out prompts during training, and its alarm."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayjobs.options import RLHFOptions
from rayjobs.runtime.evaluation import EvaluationPart
from rayjobs.runtime.gauges import WATCHED
from rayjobs.runtime.held_out import HeldOut
from rayjobs.runtime.look_grids import GRID, write_look
from sharpening.evaluation.run_folder import VALIDATION, RunFolder
from sharpening.shapes import assets


def looker(folder: Path, **changes: object) -> HeldOut:
    return HeldOut(RLHFOptions(validation_steps=2, validation_prompts=6, max_train_steps=60, **changes), folder)


def parts(held_out: HeldOut, version: int, right: int) -> list[EvaluationPart]:
    """An answer in which `right` of ten facts of every prompt hold."""
    facts = (True,) * right + (False,) * (10 - right)
    return [
        EvaluationPart(task, [60.0] * len(task.indices), [facts] * len(task.indices), version=version)
        for task in held_out.tasks
    ]


def test_it_looks_when_it_is_due_at_prompts_that_nothing_is_reported_on(tmp_path: Path) -> None:
    held_out = looker(tmp_path)
    reported = {prompt.prompt for prompt in assets.benchmark()} | set(assets.training_prompts())
    assert not reported & {prompt.prompt for task in held_out.tasks for prompt in task.prompts}
    assert held_out.due(1)
    held_out.take(parts(held_out, 1, 7), {"reward": 50.0})
    assert [updates for updates in range(1, 7) if held_out.due(updates)] == [3, 4, 5, 6]
    assert not held_out.due(60)  # the evaluation after training comes anyway
    assert not looker(tmp_path, skip_evaluation=True).due(5)
    assert not HeldOut(RLHFOptions(validation_steps=0), tmp_path).due(5)


def test_large_images_are_drawn_a_few_at_a_time(tmp_path: Path) -> None:
    assert {len(task.indices) for task in looker(tmp_path, resolution=64).tasks} == {6}
    large = looker(tmp_path, resolution=1024, rollout_batch_size=4).tasks
    assert [len(task.indices) for task in large] == [4, 2]
    assert not any(task.verify for task in large)


def test_the_alarm_is_raised_once_when_only_the_reward_rises(tmp_path: Path) -> None:
    held_out = looker(tmp_path)
    said = [
        held_out.take(parts(held_out, 2 * look, 9 - look // 2), {"reward": 50.0 + look}) for look in range(16)
    ]  # fmt: skip
    assert sum(map(bool, said)) == 1
    assert "reward" in next(filter(None, said))
    table = pq.read_table(tmp_path / VALIDATION).to_pydict()
    assert table["update"] == [2 * look for look in range(16)]
    assert table["facts"][:4] == pytest.approx([0.9, 0.9, 0.8, 0.8])
    assert table["training_reward"][-1] == 65.0
    assert RunFolder(tmp_path).validation() == pq.read_table(tmp_path / VALIDATION).to_pylist()
    assert held_out.gauges() == {"held_out_reward": 60.0, "held_out_facts": pytest.approx(0.2), "alarm": 1.0}
    assert set(held_out.gauges()) <= set(WATCHED)
    assert held_out.told() == "held-out prompts after update 30: reward 60.00, facts 0.200"
    assert table["alarm"][0] is False
    assert table["alarm"][-1] is True


def test_no_alarm_while_both_rise_and_none_without_a_reward(tmp_path: Path) -> None:
    held_out = looker(tmp_path)
    assert not any(held_out.take(parts(held_out, look, look // 2), {"reward": 50.0 + look}) for look in range(16))
    assert not any(held_out.take(parts(held_out, look, 9 - look // 2), {"loss": 1.0}) for look in range(16))


def test_updates_that_are_made_again_replace_their_looks(tmp_path: Path) -> None:
    held_out = looker(tmp_path)
    for version in (1, 3, 5, 3):
        held_out.take(parts(held_out, version, 5), {"reward": 1.0})
    assert pq.read_table(tmp_path / VALIDATION)["update"].to_pylist() == [1, 3]


def test_a_looks_grid_holds_its_images_their_prompts_and_marks(tmp_path: Path) -> None:
    held_out = looker(tmp_path)
    kept = [index for task in held_out.tasks for index in sorted(task.keep)]
    assert 2 <= len(kept) <= GRID
    found = parts(held_out, 7, 5)
    for part in found:
        part.images = {i: np.full((64, 64, 3), 40 + i % 100, np.uint8) for i in part.task.keep}
    write_look(RunFolder(tmp_path), found, 1.0, 0)
    with Image.open(tmp_path / "samples_000007.png") as grid:
        assert grid.width < 1000
        prompts = {i: p.prompt for task in held_out.tasks for i, p in zip(task.indices, task.prompts, strict=True)}
        assert grid.text["Description"].splitlines() == [prompts[i] for i in kept]
        pixels = np.asarray(grid)
    for i in kept:  # each image is there, enlarged
        assert (pixels == 40 + i % 100).all(-1).sum() >= 100 * 100
    write_look(RunFolder(tmp_path / "none"), parts(held_out, 9, 5), 1.0, 0)  # nothing kept, nothing written
    assert not (tmp_path / "none").exists()


def test_large_images_are_made_small_for_a_look(tmp_path: Path) -> None:
    held_out = looker(tmp_path)
    found = parts(held_out, 1, 5)
    for part in found:
        part.images = {i: np.zeros((1024, 512, 3), np.uint8) for i in part.task.keep}
    write_look(RunFolder(tmp_path), found, 1.0, 0)
    with Image.open(tmp_path / "samples_000001.png") as grid:
        assert grid.width < 800
