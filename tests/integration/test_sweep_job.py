"""A sweep under Ray Tune: a run that fails goes on, and a sweep that is killed repeats nothing that is finished."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import ray

from rayjobs.command_line import parse
from rayjobs.sweeping.space import run_name
from tests import runs
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures

UPDATES = 5
FIRST, SECOND = ({"branches": n, "temperature": 0.0} for n in (2, 3))


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The sweep as a process of its own, in this process's Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "PYTEST"))}
    kept |= {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if name in os.environ}
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, str(runs.ROOT / "rayjobs" / "sweep.py"), "--ray_address", address, *arguments],
        cwd=runs.ROOT, env=kept | {"HOME": str(home)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_run_that_fails_and_a_killed_sweep_go_on(models: Models, local_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    first, second = (folder / "runs" / run_name(point, 0) for point in (FIRST, SECOND))
    job = runs.flags(
        models, folder, output_dir=None, skip_evaluation=None, branches=None, max_train_steps=UPDATES,
        checkpointing_steps=1, max_failures=0, eval_prompts=6, eval_steps=2, eval_guidance_scales=1,
        validation_steps=2, validation_prompts=4,
    )  # fmt: skip
    space = ["--branches", "2", "3", "--temperature", "0", "--max_concurrent_trials", "1"]
    process = start(tmp_path, *space, "--output_dir", str(folder), "--", *job)
    try:
        runs.wait_for(lambda: process.poll() is not None or len(runs.read_metrics(first)) >= 2, "the first run")
        assert process.poll() is None, process.communicate()[0]
        runs.kill_process("ray::RayTrainWorker")
        runs.wait_for(lambda: process.poll() is not None or (second / "config.json").exists(), "the second run")
        assert process.poll() is None, process.communicate()[0]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[0]
    assert "branches=2 temperature=0 seed=0 failed and goes on from its newest checkpoint" in said
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert first / "summary.json" in before

    process = start(tmp_path, "--resume", "--output_dir", str(folder))
    said = runs.finish_process(process)
    assert process.returncode == 0, said
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    for run in (first, second):
        runs.check_whole(run, UPDATES)
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [(row["branches"], row["status"]) for row in rows] == [(2, "finished"), (3, "finished")]
    assert "best: python rayjobs/rlhf.py --config" in said
    best = parse(["--config", str(folder / "best.json")])
    assert (best.max_train_steps, best.served_rewards) == (UPDATES, None)
    assert max(rows, key=lambda row: row["gain_mean"])["branches"] == best.branches
