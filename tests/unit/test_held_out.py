"""The look at held-out prompts during training, and its alarm."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayjobs.options import RLHFOptions
from rayjobs.runtime.evaluation import EvaluationPart
from rayjobs.runtime.gauges import WATCHED
from rayjobs.runtime.held_out import HeldOut
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
