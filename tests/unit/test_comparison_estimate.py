"""Intervals over seeds and prompts: worked by hand, their coverage on simulated runs, and records that come back."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from sharpening.evaluation.comparison.estimate import Estimate, crossed_interval, difference, estimate
from sharpening.evaluation.comparison.records import (
    ImageJudgement,
    RecordError,
    Setting,
    SystemCost,
    read_records,
    write_records,
)
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.statistics import interval


def simulate(rng, seeds=3, prompts=100, run=0.0, prompt=1.0, rest=1.0):
    """Scores of mean zero with the given spreads between runs, between prompts and between images."""
    shape = (seeds, prompts)
    return run * rng.normal(size=(seeds, 1)) + prompt * rng.normal(size=(1, prompts)) + rest * rng.normal(size=shape)


def test_crossed_interval_of_a_case_worked_by_hand():
    # Seed means 2, 4, 6 (variance 4), prompt means 3, 5 (variance 2), residuals ±1 in the last two rows and 0 in the
    # first, so that their mean square over 2 degrees of freedom is (0 + 0 + 4 · 1) / 2 once the means are out.
    values = np.array([[1.0, 3.0], [4.0, 4.0], [4.0, 8.0]])
    found = crossed_interval(values)
    seeds, prompts, rest = 4 / 3, 2 / 2, 4 / 2 / 6
    variance = seeds + prompts - rest
    degrees = variance**2 / (seeds**2 / 2 + prompts**2 / 1 + rest**2 / 2)
    assert found.mean == 4.0
    assert found.high - 4.0 == pytest.approx(student.ppf(0.975, degrees) * math.sqrt(variance), rel=1e-9)
    assert found.high - 4.0 == pytest.approx(4.0 - found.low)
    assert (found.seeds, found.prompts) == (3, 2)


def test_variance_does_not_fall_below_the_seeds_or_the_prompts_own():
    # Prompt means are all 0, so V_a + V_b − V_e would be below V_a: the seeds' own 1/3 of variance 1 decides.
    values = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]) + np.array([[1, -1], [-2, 2], [1, -1]])
    rest = (1 + 1 + 4 + 4 + 1 + 1) / 2 / 6
    degrees = (1 / 3) ** 2 / ((1 / 3) ** 2 / 2 + rest**2 / 2)
    assert crossed_interval(values).half == pytest.approx(student.ppf(0.975, degrees) * math.sqrt(1 / 3))


@pytest.mark.parametrize(
    ("run", "prompt", "rest"), [(0.0, 1.0, 1.0), (0.05, 0.5, 1.0), (0.2, 0.5, 1.0), (1.0, 0.5, 1.0), (0.05, 1.0, 0.1)]
)
def test_intervals_of_three_seeds_hold_the_truth_95_times_in_100(run, prompt, rest):
    rng = np.random.default_rng(0)
    found = [crossed_interval(simulate(rng, run=run, prompt=prompt, rest=rest)) for _ in range(800)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.92 < covered < 0.985


def test_intervals_over_images_alone_would_not_hold_the_truth():
    """What the crossed interval is for: runs that differ are not 3 × 100 independent images."""
    rng = np.random.default_rng(0)
    found = [interval(simulate(rng, run=0.2, prompt=0.5).ravel()) for _ in range(400)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) < 0.7


def test_one_seed_is_the_interval_over_prompts_and_decides_nothing():
    values = np.random.default_rng(0).normal(5, 1, size=(1, 40))
    found, plain = crossed_interval(values), interval(values[0])
    assert (found.mean, found.low, found.high) == (plain.mean, plain.low, plain.high)
    assert found.excludes_zero
    assert found.word == "undecided"


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros((3, 1)), np.array([[1.0, np.nan], [1.0, 1.0]])])
def test_intervals_of_what_has_none(values):
    with pytest.raises(ValueError, match=r"at least|not finite"):
        crossed_interval(values)


def test_words():
    assert Estimate(1, 0.5, 1.5, 3, 9).word == "above"
    assert Estimate(-1, -1.5, -0.5, 3, 9).word == "below"
    assert Estimate(1, -0.5, 2.5, 3, 9).word == "not told apart"
    assert Estimate(1, 0.5, 1.5, 2, 9).word == "undecided"


def test_differences_are_paired_by_seed_and_prompt_whatever_their_order():
    rng = np.random.default_rng(1)
    base = pd.DataFrame(rng.normal(0, 10, (3, 50)), index=[0, 1, 2], columns=range(50))
    ours = (base + 1 + rng.normal(0, 0.1, base.shape)).sample(frac=1, random_state=0)[list(range(49, -1, -1))]
    found = difference(ours, base)
    assert found is not None
    assert found.mean == pytest.approx(float(ours.to_numpy().mean() - base.to_numpy().mean()))
    assert found.half < 0.1


def test_images_without_a_score_leave_their_prompt_out_and_seeds_without_any_are_left_out():
    table = pd.DataFrame([[1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, 5.0], [np.nan] * 4], index=[0, 1, 2])
    found = estimate(table)
    assert found is not None
    assert (found.seeds, found.prompts) == (2, 3)
    assert found.mean == pytest.approx((1 + 3 + 4 + 1 + 3 + 5) / 6)
    assert estimate(table.iloc[2:]) is None
    assert estimate(pd.DataFrame()) is None


def judgements():
    rows = []
    for system, gain in (("base", 0.0), ("rlhf", 0.25)):
        for seed in range(3):
            for prompt, category in enumerate(["colour", "colour", "non-spatial", "non-spatial"]):
                facts = 0.25 * (prompt % 3) + gain
                scored = {"clip": 50.0 + prompt, "facts": facts, "all": facts > 0.5}
                rows.append(ImageJudgement(system, seed, 1.0, 12, 12, prompt, category, **scored))
    return rows


def test_records_come_back_from_parquet(tmp_path):
    rows = judgements()
    rows[3] = dataclasses.replace(rows[3], clip=None, all=None)
    write_records(tmp_path / "r.parquet", rows)
    back = read_records(tmp_path / "r.parquet", ImageJudgement)
    assert back == rows
    assert [type(row.all) for row in back[:4]] == [bool, bool, bool, type(None)]
    costs = [SystemCost("rlhf", 0, "fine-tuning", 9, 1.5, 3.0, 12, 0.25, 36, 7)]
    write_records(tmp_path / "c.parquet", costs)
    assert read_records(tmp_path / "c.parquet", SystemCost) == costs
    with pytest.raises(RecordError, match="columns"):
        read_records(tmp_path / "c.parquet", ImageJudgement)
    with pytest.raises(RecordError, match="at least one"):
        write_records(tmp_path / "n.parquet", [])


def test_scores_by_column_and_category():
    scores = Scores(judgements())
    base, ours = (Setting(name, 1.0, 12, 12) for name in ("base", "rlhf"))
    assert scores.settings == (base, ours)
    assert scores.table(base, "colour").to_numpy().tolist() == [[0.0, 0.25]] * 3
    assert scores.table(base, "non_spatial").to_numpy().tolist() == [[0.5, 0.0]] * 3
    assert scores.table(ours, "all").to_numpy().tolist() == [[0.0, 0.0, 1.0, 0.0]] * 3
    found = scores.difference(ours, base, "facts")
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    assert scores.measured("clip")
    assert not scores.measured("grader")
    assert not scores.measured("spatial")
    assert scores.estimate(base, "grader") is None
    assert scores.estimate(Setting("ddpo", 1.0, 12, 12), "clip") is None
    assert scores.of("rlhf", guidance_scale=3.0) == []


def test_an_image_judged_twice_is_refused():
    with pytest.raises(RecordError, match="1 images are judged twice, first rlhf seed 2 prompt 3"):
        Scores([*judgements(), judgements()[-1]])
