"""The search job with real Ray and Serve: killed and started again, it goes on and finds the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sharpening.policies import load_policy
from sharpening.rewards.clip import ClipScorer
from sharpening.search import load_search
from sharpening.search.base import SearchSeeds
from tests import runs
from tests.runs import Models, models

__all__ = ["models"]  # a fixture


def start(models: Models, folder: Path, home: Path, *more: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "PYTEST"))}
    kept |= {name: os.environ[name] for name in ("RAY_worker_niceness",) if name in os.environ}
    return subprocess.Popen(
        [sys.executable, str(runs.ROOT / "rayjobs" / "search.py"), "--pretrained_model_name_or_path",
         str(models.pipeline), "--search", "random", "--budget", "12", "--rollout_steps", "4", "--num_prompts", "12",
         "--rollout_batch_size", "2", "--output_dir", str(folder), *more],
        cwd=runs.ROOT, env=kept | {"HOME": str(home)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_killed_search_goes_on_where_it_was(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    process = start(models, folder, tmp_path, "--num_rollout_actors", "1")
    runs.wait_for(lambda: len(list((folder / "parts").glob("*.json"))) >= 2 or process.poll() is not None, "two tasks")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path.name: path.read_bytes() for path in (folder / "parts").glob("*.json")}
    assert before
    said = runs.finish_process(start(models, folder, tmp_path, "--num_rollout_actors", "1"))
    assert f"{len(before)} of 6 tasks were done before" in said or len(before) == 6, said
    assert all((folder / "parts" / name).read_bytes() == contents for name, contents in before.items())
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert len({row["index"] for row in rows}) == 12
    assert all(Image.open(folder / row["image"]).size == (64, 64) for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["nfe"] == 12 * 12  # three images of four steps each, twelve prompts
    assert summary["images_scored"] == 12 * 3
    assert summary["metrics"]["reward"]["mean"] == pytest.approx(sum(row["reward"] for row in rows) / 12)
    # The same search in this process, all prompts at once: batches and actors change nothing.
    rows.sort(key=lambda row: row["index"])
    found = load_search("random", steps=4).search(
        load_policy(models.pipeline), ClipScorer(), [row["prompt"] for row in rows], 12,
        SearchSeeds(0, tuple(row["index"] for row in rows)),
    )  # fmt: skip
    assert [row["reward"] for row in rows] == pytest.approx(list(found.rewards), abs=0.1)
    assert all(
        np.abs(np.asarray(Image.open(folder / row["image"])).astype(int) - image).max() <= 2
        for row, image in zip(rows, found.images, strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "luck"], "--search: unknown search, choose one of random"),
        (["--budget", "0"], "--budget: must be at least 1"),
        (["--prompts", "absent.txt"], "--prompts: there is no file absent.txt"),
        (["--pretrained_model_name_or_path", "nowhere"], "--pretrained_model_name_or_path: there is no folder nowhere"),
        (["--search_config", "absent.json"], "--search_config: cannot read absent.json"),
        (["--budget", "3"], "--budget: 3 evaluations do not pay for one image; pass 4 or more"),
    ],
)
def test_wrong_options_cost_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from rayjobs.search import main

    monkeypatch.chdir(tmp_path)
    assert main(["--rollout_steps", "4", *arguments, "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "parts").exists()
