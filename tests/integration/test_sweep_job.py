"""A sweep under Ray Tune: a run that fails goes on, and a sweep that is killed repeats nothing that is finished."""

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq

from rayjobs.command_line import parse
from rayjobs.sweeping.space import run_name
from sharpening.evaluation.run_folder import RunFolder
from tests import runs
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures

UPDATES = 5
REWARD = {"reward": "tests.own_rewards:Brightness", "reward_model": None}  # one that starts quickly
RATES = (1e-6, 1e-2, 1e30)


def test_a_run_that_fails_goes_on_from_its_newest_checkpoint(models: Models, local_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    only = folder / "runs" / run_name({"branches": 2, "temperature": 0.0}, 0)
    job = runs.flags(
        models, folder, output_dir=None, skip_evaluation=None, branches=None, **REWARD, max_train_steps=UPDATES,
        checkpointing_steps=1, max_failures=0, eval_prompts=6, eval_steps=2, eval_guidance_scales=1,
        validation_steps=2, validation_prompts=4,
    )  # fmt: skip
    space = ["--branches", "2", "--temperature", "0", "--max_concurrent_trials", "1"]
    process = runs.start_process([*space, "--output_dir", str(folder), "--", *job], tmp_path, "sweep", joins=True)
    runs.wait_for(lambda: process.poll() is not None or len(runs.read_metrics(only)) >= 2, "two updates")
    assert process.poll() is None, process.communicate()[0]
    runs.kill_process("ray::RayTrainWorker")
    said = runs.finish_process(process)
    assert process.returncode == 0, said
    assert "branches=2 temperature=0 seed=0 failed and goes on from its newest checkpoint" in said
    runs.check_whole(only, UPDATES)
    (row,) = pq.read_table(folder / "results.parquet").to_pylist()
    assert (row["branches"], row["status"]) == (2, "finished")
    assert "best: python rayjobs/rlhf.py --config" in said
    best = parse(["--config", str(folder / "best.json")])
    assert (best.branches, best.max_train_steps, best.served_rewards) == (2, UPDATES, None)


def test_what_optuna_draws_is_ended_early_by_asha_or_listed_with_its_error(models: Models, tmp_path: Path) -> None:
    """Of three runs one comes to its end; one falls behind it, and one's loss is no number.

    The sweep is killed in between: what is finished stays as it is, and the second is held against what the first had
    reached before. Its own Ray has room for one run, which the last of them needs.
    """
    folder = tmp_path / "drawn"
    job = runs.flags(
        models, folder, output_dir=None, skip_evaluation=None, learning_rate=None, max_train_steps=UPDATES,
        lr_scheduler="constant", lr_warmup_steps=0, eval_prompts=6, eval_steps=2, eval_guidance_scales=1,
        validation_steps=2, validation_prompts=4, branches=None,
    )  # fmt: skip
    space = ["--branches", "3", "--temperature", "0", "--learning_rate", *map(str, RATES)]
    drawn = ["--search", "optuna", "--num_samples", "3", "--seeds", "1", "--max_concurrent_trials", "1"]
    drawn += ["--scheduler", "asha", "--grace_updates", "2", "--reduction_factor", "2", "--max_trial_failures", "0"]
    process = runs.start_process([*space, *drawn, "--output_dir", str(folder), "--", *job], tmp_path, "sweep")
    second = folder / "runs" / run_name({"branches": 3, "temperature": 0.0, "learning_rate": RATES[0]}, 1)
    try:
        runs.wait_for(lambda: process.poll() is not None or (second / "config.json").exists(), "the second run")
        assert process.poll() is None, process.communicate()[0]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = folder / "runs" / run_name({"branches": 3, "temperature": 0.0, "learning_rate": RATES[1]}, 1)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert first / "summary.json" in before
    process = runs.start_process(["--resume", "--output_dir", str(folder)], tmp_path, "sweep")
    said = runs.finish_process(process)
    assert process.returncode == 0, said
    assert "1/3 ended; " in said  # it has not forgotten the first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    runs.check_whole(first, UPDATES)
    rows = {row["learning_rate"]: row for row in pq.read_table(folder / "results.parquet").to_pylist()}
    slow, fast, wild = (rows[rate] for rate in RATES)
    assert [row["status"] for row in (slow, fast, wild)] == ["stopped early", "finished", "failed"]
    assert "the loss of update 1 is not finite; lower --learning_rate" in wild["error"]
    assert wild["error"] in (folder / "table.md").read_text()
    locks = {path.name for path in (folder / "runs").glob("*.lock")}
    assert locks == {f"{row['folder']}.lock" for row in rows.values()}  # a run waits for its like alone
    # It was ended for its held-out reward, at the first look past the grace, and not for anything else.
    held_out = {
        name: {look["update"]: look["reward"] for look in RunFolder(folder / "runs" / row["folder"]).validation()}
        for name, row in (("slow", slow), ("fast", fast))
    }
    last = max(held_out["slow"])
    assert 2 <= last < UPDATES
    assert held_out["slow"][last] < held_out["fast"][last]
    assert parse(["--config", str(folder / "best.json")]).learning_rate == RATES[1]
    assert "╭" not in said  # Tune's boxes
