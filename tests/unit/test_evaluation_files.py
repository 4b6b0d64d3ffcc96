"""The run folder: ownership, summary, metrics across kills and replays, full disks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sharpening.evaluation.files import DiskFull, write_bytes, write_json
from sharpening.evaluation.metrics import MetricsLog, read_metrics
from sharpening.evaluation.run_folder import RunFolder, RunFolderError, versions
from sharpening.evaluation.summary import PromptResult, compare_results, judged, summarise

CATEGORIES = ("colour", "non-spatial")


def results(scale: float = 1.0, shift: float = 2.0) -> list[PromptResult]:
    """Eight prompts in two categories; the reward rises by `shift` on average, one more prompt becomes fully right."""
    rows = []
    for index in range(8):
        for phase in ("before", "after"):
            gain = (shift + 0.1 * (-1) ** index) * (phase == "after")
            facts = [True, index % 2 == 0 or (index == 1 and phase == "after")]
            category = CATEGORIES[index // 4]
            rows.append(
                PromptResult(index, f"prompt {index}", category, phase, scale, **judged(80 + index + gain, facts))
            )
    return rows


def test_summary_has_the_promised_schema():
    summary = summarise(results() + results(3.0, -1.0), 1.0, updates=30, seconds=12.5, nfe=999, extra={"seed": 3})
    again = json.loads(json.dumps(summary))
    names = {"reward", "facts", "all"}
    assert set(again["metrics"]) == names | {f"{m}_{c}" for m in names for c in ("colour", "non_spatial")}
    for metric in again["metrics"].values():
        assert set(metric) == {"before", "after", "difference"}
        for part in metric.values():
            assert part["low"] <= part["mean"] <= part["high"]
    assert (again["updates"], again["seconds"], again["nfe"], again["seed"]) == (30, 12.5, 999, 3)
    assert again["metrics"] == again["guidance"]["1"]["metrics"]
    assert again["metrics"]["reward"]["difference"]["mean"] == pytest.approx(2.0)
    assert again["guidance"]["3"]["metrics"]["reward"]["difference"]["mean"] == pytest.approx(-1.0)
    assert again["metrics"]["all"]["before"]["mean"] == pytest.approx(4 / 8)
    assert again["metrics"]["all"]["after"]["mean"] == pytest.approx(5 / 8)
    assert again["metrics"]["facts"]["difference"]["mean"] == pytest.approx(0.5 / 8)
    assert again["prompts"] == 8


def test_extra_cannot_hide_a_result():
    assert summarise(results(), 1.0, updates=1, seconds=1, nfe=1, extra={"updates": 5, "metrics": {}})["updates"] == 1


def test_pairs_are_matched_by_prompt_not_by_order():
    rows = results()
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert compare_results(shuffled, 1.0) == compare_results(rows, 1.0) or all(
        a.difference.mean == pytest.approx(b.difference.mean) and a.difference.low == pytest.approx(b.difference.low)
        for a, b in zip(compare_results(shuffled, 1.0).values(), compare_results(rows, 1.0).values(), strict=True)
    )


def test_a_failed_score_takes_its_prompt_out_and_is_no_zero():
    rows = [
        PromptResult(**{**row.__dict__, "reward": None}) if (row.index, row.phase) == (2, "after") else row
        for row in results()
    ]
    found = compare_results(rows, 1.0)
    assert found["reward"].prompts == 7
    assert found["all"].prompts == 8
    assert found["reward"].difference.mean == pytest.approx(2.0 - 0.1 / 7)


def test_without_a_verifier_only_the_reward_is_compared():
    rows = [PromptResult(i, "p", "any", phase, 1.0, **judged(float(i), None)) for i in range(3) for phase in
            ("before", "after")]  # fmt: skip
    assert set(compare_results(rows, 1.0)) == {"reward", "reward_any"}
    assert summarise(rows, 2.0, updates=0, seconds=0, nfe=0)["metrics"] == {}


def test_evaluation_table_reads_back(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    run.write_evaluation(results())
    table = pq.read_table(run.path / "evaluation.parquet")
    assert table.num_rows == 16
    assert table.column_names == [
        "index", "prompt", "category", "phase", "guidance_scale", "reward", "facts", "all"
    ]  # fmt: skip
    assert table.column("phase").to_pylist()[:2] == ["before", "after"]
    assert table.column("facts").to_pylist()[2] == 0.5


def test_a_run_folder_belongs_to_one_run(tmp_path):
    run = RunFolder.create(tmp_path / "deep" / "run", {"branches": 4, "beta": np.float64(2.5)})
    assert run.config() == {"branches": 4, "beta": 2.5}
    assert run.checkpoints.is_dir()
    with pytest.raises(RunFolderError, match="belongs to another run"):
        RunFolder.create(run.path, {"branches": 5})
    assert RunFolder.resume(run.path).config() == {"branches": 4, "beta": 2.5}
    with pytest.raises(RunFolderError, match="belongs to no run"):
        RunFolder.resume(tmp_path / "deep")


def test_versions_name_packages_but_neither_host_nor_paths(tmp_path):
    import socket

    RunFolder.create(tmp_path / "run", {})
    text = (tmp_path / "run" / "versions.json").read_text()
    found = json.loads(text)
    assert found["python"].count(".") == 2
    assert found["packages"]["numpy"] == np.__version__
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text.replace('"/"', "") or str(Path.home()) == "/"
    assert str(tmp_path) not in text
    assert found["commit"] is None or len(found["commit"]) == 40
    assert set(versions()) == set(found)


def test_cost_goes_on_after_a_resume(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    assert run.read_cost().total_nfe == 0
    cost = run.read_cost()
    cost.add_nfe("reference", 7)
    run.write_cost(cost)
    assert run.read_cost().nfe["reference"] == 7


def test_metrics_grow_and_read_back(tmp_path):
    log = MetricsLog(tmp_path)
    for update in range(3):
        log.append({"update": update, "loss": np.float32(0.5), "grad_norm": float("nan")})
    assert read_metrics(tmp_path) == [{"update": u, "loss": 0.5, "grad_norm": None} for u in range(3)]
    assert MetricsLog(tmp_path).rows == log.rows
    log.append({"update": 3, "extra": 1})
    table = pq.read_table(log.write_table())
    assert table.column_names == ["update", "loss", "grad_norm", "extra"]
    assert table.column("update").to_pylist() == [0, 1, 2, 3]
    assert table.column("extra").to_pylist() == [None, None, None, 1]


def test_an_update_made_again_replaces_its_row_and_later_ones(tmp_path):
    log = MetricsLog(tmp_path)
    for update in range(5):
        log.append({"update": update, "loss": update})
    log.append({"update": 2, "loss": 20})
    assert [(row["update"], row["loss"]) for row in read_metrics(tmp_path)] == [(0, 0), (1, 1), (2, 20)]
    assert log.rows == read_metrics(tmp_path)


def test_of_two_rows_of_one_update_the_last_counts(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "a": 1}\n{"update": 0, "a": 2}\n{"update": 1, "a": 3}\n')
    assert read_metrics(tmp_path) == [{"update": 0, "a": 2}, {"update": 1, "a": 3}]


@pytest.mark.parametrize("cut", ["", "{", '{"update"', '{"update": 2, "loss": 0.25'])
def test_a_line_cut_short_is_left_out_and_mended(tmp_path, cut):
    whole = '{"update": 0, "loss": 0.5}\n{"update": 1, "loss": 0.25}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + cut)
    assert [row["update"] for row in read_metrics(tmp_path)] == [0, 1]
    MetricsLog(tmp_path).append({"update": 2, "loss": 0.125})
    assert (tmp_path / "metrics.jsonl").read_text() == whole + '{"update": 2, "loss": 0.125}\n'


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 0}\nnonsense\n{"update": 2}\n')
    with pytest.raises(ValueError, match="line 2 is no row"):
        read_metrics(tmp_path)


def test_metrics_survive_a_kill(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sharpening.evaluation.metrics import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\n"
        "for update in range(10**6): log.append({'update': update, 'text': 'x' * 4000})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 600
        while len(read_metrics(tmp_path)) < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    log = MetricsLog(tmp_path)
    assert len(log.rows) >= 20
    assert [row["update"] for row in log.rows] == list(range(len(log.rows)))
    log.append({"update": len(log.rows)})
    assert len(read_metrics(tmp_path)) == len(log.rows)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without room")
def test_a_full_disk_is_a_typed_error(tmp_path):
    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="make room and resume") as caught:
        log.append({"update": 0})
    assert caught.value.errno == errno.ENOSPC
    assert log.rows == []


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    old = path.read_bytes()

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(DiskFull):
        write_json(path, {"a": 2})
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "nowhere" / "file", b"")


def test_json_holds_no_nan(tmp_path):
    write_json(
        tmp_path / "a.json", {"x": float("inf"), "y": [np.float32(1.5), np.nan], "z": np.arange(2), "w": Path("a")}
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5, None], "z": [0, 1], "w": "a"}
