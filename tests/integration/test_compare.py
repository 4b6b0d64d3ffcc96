"""A comparison with real jobs: killed after its training, it goes on there, and its report says what was measured."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import runs
from tests.runs import Models, models

__all__ = ["models"]  # a fixture


def start(models: Models, folder: Path, home: Path) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "PYTEST"))}
    kept |= {name: os.environ[name] for name in ("RAY_worker_niceness",) if name in os.environ}
    return subprocess.Popen(
        [sys.executable, str(runs.ROOT / "rayjobs" / "compare.py"), "--quick", "--methods", "standard",
         "--searches", "random", "--steps", "3", "--pretrained_model_name_or_path", str(models.pipeline),
         "--output_dir", str(folder)],
        cwd=runs.ROOT, env=kept | {"HOME": str(home)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.timeout(400)
def test_a_killed_comparison_goes_on_and_reports(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    process = start(models, folder, tmp_path)
    trained = folder / "runs" / "standard-s0" / "summary.json"
    runs.wait_for(lambda: trained.exists() or process.poll() is not None, "a trained model")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = trained.stat().st_mtime_ns
    said = runs.finish_process(start(models, folder, tmp_path))
    assert (folder / "report.md").is_file(), said
    assert trained.stat().st_mtime_ns == before  # it was not trained again
    summary = json.loads((folder / "summary.json").read_text())
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    for name, nfe in (("base", 3), ("standard", 3), ("random", 12)):
        own = [row for row in rows if row["system"] == name and row["nfe"] == nfe and row["guidance_scale"] == 1.0]
        found = summary["methods"][name]["clip"]
        assert found["nfe"] == nfe
        assert found["mean"] == pytest.approx(sum(row["clip"] for row in own) / len(own))
    best = {row["prompt"]: row["clip"] for row in rows if row["system"] == "random" and row["nfe"] == 12}
    once = {row["prompt"]: row["clip"] for row in rows if row["system"] == "random" and row["nfe"] == 3}
    assert all(best[prompt] >= once[prompt] - 1e-3 for prompt in once)
    report = (folder / "report.md").read_text()
    assert "python rayjobs/compare.py --quick" in report
    assert list((folder / "figures").glob("*.png"))
