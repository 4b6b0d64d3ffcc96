"""The space of a sweep, its folder and its tables; without Ray."""

import io
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayjobs.command_line import parse, read
from rayjobs.errors import OptionError
from rayjobs.sweep import main, read_sweep
from rayjobs.sweeping.options import SweepOptions
from rayjobs.sweeping.plots import _Axis, heat_map
from rayjobs.sweeping.report import PointResult, RunResult, SweepFailed, ended, ranked, write_report
from rayjobs.sweeping.space import Range, Space, label, run_name
from sharpening.evaluation.files import row_columns, write_json, write_parquet
from sharpening.evaluation.statistics import Interval

TINY = "--max_train_steps 4 --prompts_per_update 8 --rollout_batch_size 4"


def space(arguments: str, job: str = TINY) -> Space:
    options = read(SweepOptions, arguments.split(), "sweep.py")
    assert isinstance(options, SweepOptions)
    return Space(options, parse(job.split()))


def test_a_grid_has_every_point_and_the_jobs_own_values_elsewhere() -> None:
    varied = space("--branches 2 --temperature 0 --branch_steps 1 3 --reward_scale 0 0.02").points()
    assert [(point["branch_steps"], point["reward_scale"]) for point in varied] == [
        (1, 0),
        (1, 0.02),
        (3, 0),
        (3, 0.02),
    ]
    found = space("--branches 2 4 --temperature 0 0.5 --seeds 0 3", TINY + " --beta 50")
    points = [{"branches": n, "temperature": t} for n in (2, 4) for t in (0.0, 0.5)]
    assert found.points() == points
    assert isinstance(found.points()[0]["branches"], int)
    job = found.job(points[3], 3)
    assert (job.branches, job.temperature, job.seed, job.beta, job.max_train_steps) == (4, 0.5, 3, 50.0, 4)
    assert label(points[3]) == "branches=4 temperature=0.5"
    assert run_name(points[3], 3) == "branches-4_temperature-0.5_seed-3"


def test_a_random_search_draws_the_same_points_again_from_values_and_ranges() -> None:
    flags = (
        "--search random --num_samples 200 --branches 2..4 --temperature 0 4 --learning_rate 1e-6..1e-3 --beta 50..90"
    )
    points = space(flags).points()
    assert points == space(flags).points()
    assert points != space(flags + " --seeds 1").points()
    assert len(points) == 200
    assert {point["branches"] for point in points} == {2, 3, 4}
    assert {point["temperature"] for point in points} == {0.0, 4.0}
    rates = np.log10([point["learning_rate"] for point in points])
    assert np.histogram(rates, bins=[-6, -5, -4, -3])[0].min() > 40  # as many of every order of magnitude
    assert all(50 <= point["beta"] <= 90 for point in points)


def test_a_random_search_draws_no_point_twice() -> None:
    points = space("--search random --num_samples 12 --branches 2..4 --temperature 0 1 4 16").points()
    assert len({label(point) for point in points}) == 12  # all there are


def test_a_range_is_drawn_from_by_order_of_magnitude_only_where_its_ends_are_far_apart() -> None:
    assert not Range(0.0, 100.0, False).logarithmic
    assert not Range(20.0, 100.0, False).logarithmic
    assert Range(1.0, 100.0, False).logarithmic
    draws = [Range(1.0, 100.0, False).draw(random.Random(seed)) for seed in range(300)]
    assert np.mean([math.log10(value) for value in draws]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--branches 0 2", "--branches: must be at least 2, is 0"),
        ("--temperature -1 0", "--temperature: must be at least 0, is -1"),
        ("--branches 2.5", "--branches: '2.5' is not a whole number"),
        ("--beta nan", "--beta: must be a finite number"),
        ("--colour 3", "--colour: unknown option"),
        ("--branches 2..4", "--branches: a grid has no points in 2..4"),
        ("--search random --branches 4..2", "--branches: 4..2 is no range"),
        ("--search random --branches 2..4 3", "--branches: a range stands alone"),
        ("--search random --branches 1..4", "--branches: must be at least 2, is 1"),
        ("--search optuna --seeds 0 1", "--seeds: 'optuna' goes by one number a point"),
        ("--branches 2 2", "--branches: a value stands there twice"),
        ("--search random --branches 2..3 --temperature 0 1", "--num_samples: is 12, but the space has only 4 points"),
        ("--search optuna --branches 2 --temperature 0", "--num_samples: is 12, but the space has only 1 point;"),
        ("--scheduler asha -- --max_train_steps 4", "--grace_updates: is 6, but a run has only 4 updates"),
        ("--scheduler asha -- --validation_steps 0", "--validation_steps: is 0, so that 'asha' never sees"),
        ("--scheduler asha -- --validation_steps 36", "--validation_steps: is 36, so that 'asha' never sees"),
        ("--seeds 0 0", "--seeds: every seed must be there once"),
        ("--branch_steps 99", "--branch_steps:"),
        ("-- --skip_evaluation", "--skip_evaluation: a sweep compares its runs by their evaluation"),
        ("-- --output_dir here", "--output_dir: is the sweep's to say"),
        ("-- --branches 0", "--branches: must be at least 2"),
        ("-- --prompts absent.txt", "--prompts: there is no file absent.txt"),
        ("-- --method standard", "--branches: standard has no such option"),
        ("--resume", "--resume: "),
        ("--resume --output_dir nowhere", "--resume: nowhere holds no sweep"),
    ],
)
def test_a_bad_space_is_refused_before_the_first_run(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rayjobs.sweeping.run.Sweep.execute", lambda sweep: pytest.fail("the sweep was started"))
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("sweep.json"))


def test_a_folder_is_claimed_once_and_keeps_the_sweeps_options(tmp_path: Path) -> None:
    folder = str(tmp_path / "sweep")
    own = ["--branches", "2", "3", "--temperature", "0", "--output_dir", folder]
    options, job, _ = read_sweep([*own, "--", *TINY.split()])
    with pytest.raises(OptionError, match="is not empty; pass another folder, or --resume"):
        read_sweep([*own, "--", *TINY.split()])
    again, job_again, found = read_sweep(["--resume", "--output_dir", folder])
    assert found == Path(folder)
    assert job_again.model_dump() == job.model_dump()
    assert again.model_dump(exclude={"resume"}) == options.model_dump(exclude={"resume"})


def test_quick_gives_way_to_what_is_passed(tmp_path: Path) -> None:
    flags = ["--quick", "--branches", "4", "--output_dir", str(tmp_path / "sweep"), "--", "--max_train_steps", "2"]
    options, job, _ = read_sweep(flags)
    assert (options.branches, options.temperature) == (("4",), ("0", "4"))
    assert (job.max_train_steps, job.prompts_per_update) == (2, 8)


def leave(runs: Path, point: dict[str, float], seed: int, gain: float) -> None:
    """The files of a finished run that a report reads."""
    folder = runs / run_name(point, seed)
    folder.mkdir(parents=True)
    difference = {"mean": gain, "low": gain - 1, "high": gain + 1}
    levels = {"before": {"mean": 60.0}, "after": {"mean": 60 + gain}, "difference": difference}
    write_json(folder / "summary.json", {"metrics": {"reward": levels}, "nfe": 1000, "seconds": 5.0, "updates": 2})
    write_json(folder / "config.json", {"method": "rlhf", "seed": seed, **point})
    rows = [{"update": update, "nfe": 400, "nfe_learn": 100} for update in range(2)]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    write_parquet(
        folder / "validation.parquet", row_columns([{"update": 1, "reward": 61.0}, {"update": 2, "reward": 62.0}])
    )


def results(runs: Path) -> list[RunResult]:
    for (n, t), gains in {(2, 0.0): (1.0, 2.0, 3.0), (3, 0.0): (5.0, 5.5, 6.0), (3, 4.0): (0.5, 0.5, 0.5)}.items():
        for seed, gain in enumerate(gains):
            leave(runs, {"branches": n, "temperature": t}, seed, gain)
    configs: list[dict[str, Any]] = [
        {"point": {"branches": n, "temperature": t}, "seed": seed}
        for n in (2, 3)
        for t in (0.0, 4.0)
        for seed in (0, 1, 2)
    ]
    errors = {(2, 4.0): RuntimeError("trace\nValueError: the learner died")}
    return [ended(c, errors.get((c["point"]["branches"], c["point"]["temperature"])), runs) for c in configs]


def test_a_run_that_two_trials_asked_for_counts_once(tmp_path: Path) -> None:
    leave(tmp_path, {"branches": 2}, 0, 1.0)
    twice = [ended({"point": {"branches": 2}, "seed": 0}, None, tmp_path) for _ in range(2)]
    (found,) = ranked(twice)
    assert len(found.runs) == 1
    assert found.gain is not None
    assert (found.gain.low, found.gain.high) == (0.0, 2.0)  # the run's own interval, not one over two seeds


def test_the_best_point_comes_first_with_an_interval_over_seeds(tmp_path: Path) -> None:
    runs = results(tmp_path / "runs")
    points = ranked(runs)
    assert [(result.point["branches"], result.point["temperature"]) for result in points] == [
        (3, 0.0), (2, 0.0), (3, 4.0), (2, 4.0),
    ]  # fmt: skip
    gain = points[0].gain
    assert gain is not None
    half = 4.302653 * 0.5 / math.sqrt(3)  # Student's t with two degrees of freedom
    assert (gain.mean, gain.low, gain.high) == pytest.approx((5.5, 5.5 - half, 5.5 + half), rel=1e-5)
    assert points[3].gain is None
    assert points[3].status == "3 failed"

    said = write_report(tmp_path, runs, ["branches", "temperature"], "python rayjobs/sweep.py --branches 2 3")
    table = (tmp_path / "table.md").read_text()
    assert "| 3 | 0 | 60.00 | 65.50 | +5.50 | +4.26, +6.74 | 1,000 | 3 finished |" in table
    assert "branches=2 temperature=4 seed=1: ValueError: the learner died" in table
    assert "over the runs of 3 seeds" in table
    assert json.loads((tmp_path / "best.json").read_text())["branches"] == 3
    assert f"best: python rayjobs/rlhf.py --config {tmp_path / 'best.json'}" in said
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["status"] for row in rows].count("failed") == 3
    assert rows[0]["gain_mean"] == 1.0
    for name in ("heat_map.png", "reward_nfe.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 5
    assert runs[0].curve() == ([0.0005, 0.001], [61.0, 62.0])


def test_many_drawn_values_are_parts_of_a_range_in_the_heat_map(tmp_path: Path) -> None:
    rates = [10 ** (-6 + 3 * place / 599) for place in range(600)]  # a column each would be wider than a picture may be
    points = [
        PointResult({"learning_rate": rate, "branches": n}, (), Interval(gain, gain, gain))
        for rate, n, gain in zip(rates, [2, 3] * 300, np.linspace(-1, 1, 600), strict=True)
    ]
    picture = Image.open(io.BytesIO(heat_map(points, "learning_rate", "branches")))
    assert picture.width < 2000
    axis = _Axis(rates)
    assert len(axis.labels) == 8
    assert [axis.place(rate) for rate in (rates[0], 1.1e-6, 3.1e-5, 3.2e-5, rates[-1])] == [0, 0, 3, 4, 7]
    assert _Axis([3, 2, 3]).labels == ["2", "3"]


def test_one_seeds_interval_is_its_prompts_and_a_sweep_without_a_finished_run_fails(tmp_path: Path) -> None:
    leave(tmp_path / "runs", {"beta": 2.0}, 0, 1.5)
    run = ended({"beta": 2.0, "seed": 0}, None, tmp_path / "runs")
    (point,) = ranked([run])
    assert point.gain is not None
    assert (point.gain.low, point.gain.high) == (0.5, 2.5)
    assert "over the prompts of one run" in (
        write_report(tmp_path, [run], ["beta"], "x") and (tmp_path / "table.md").read_text()
    )
    missing = ended({"beta": 3.0, "seed": 0}, ValueError("no room"), tmp_path / "runs")
    with pytest.raises(SweepFailed, match=r"no run came to its end \(no room\)"):
        write_report(tmp_path, [missing], ["beta"], "x")


def test_asha_holds_runs_of_a_resumed_sweep_against_those_that_had_ended(tmp_path: Path) -> None:
    from rayjobs.sweeping.scheduler import ResumableASHA

    def trial(branches: int, status: str) -> Any:
        return SimpleNamespace(trial_id=str(branches), status=status, config={"branches": branches, "seed": 0})

    def decision(restored: bool) -> str:
        asha = ResumableASHA(str(tmp_path), time_attr="update", max_t=9, grace_period=2, reduction_factor=3)
        asha.set_search_properties("reward", "max")
        if restored:
            asha.on_trial_add(None, trial(2, "TERMINATED"))
        asha.on_trial_add(None, trial(3, "RUNNING"))
        return asha.on_trial_result(None, trial(3, "RUNNING"), {"update": 2, "reward": 61.5})

    leave(tmp_path, {"branches": 2}, 0, 1.0)  # it had 62 after two updates
    leave(tmp_path, {"branches": 3}, 0, 1.0)  # and this one says itself, once more, what it has
    assert decision(restored=True) == "STOP"
    assert decision(restored=False) == "CONTINUE"
