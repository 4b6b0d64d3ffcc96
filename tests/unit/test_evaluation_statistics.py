"""Intervals and paired comparisons against textbook numbers, a simulation and an independent computation."""

import math

import numpy as np
import pytest

from sharpening.evaluation.cost import CostAccount, peak_rss
from sharpening.evaluation.statistics import Interval, compare, interval, reward_statistics
from sharpening.evaluation.table import final_table, format_table

T_975 = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622, 29: 2.0452, 99: 1.9842}
"""Student's t at 0.975, from a printed table."""


def student_cdf(t: float, degrees: int, points: int = 200_001) -> float:
    """P(T < t) for t > 0 by integrating the density; knows nothing of scipy."""
    x = np.linspace(0.0, t, points)
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = np.exp(log_scale - (degrees + 1) / 2 * np.log1p(x**2 / degrees))
    return 0.5 + float(((density[1:] + density[:-1]) / 2 * np.diff(x)).sum())


def test_interval_of_a_case_worked_by_hand():
    # mean 4, deviations -3 -1 1 3, s² = 20 / 3, s / √4 = 1.29099, t(0.975, 3) = 3.18245
    found = interval([1.0, 3.0, 5.0, 7.0])
    assert found.mean == 4.0
    assert found.high - 4.0 == pytest.approx(1.29099 * 3.18245, abs=1e-4)
    assert 4.0 - found.low == pytest.approx(1.29099 * 3.18245, abs=1e-4)


@pytest.mark.parametrize("degrees", list(T_975))
def test_interval_uses_the_printed_t(degrees):
    values = np.arange(degrees + 1, dtype=float)
    half = interval(values).high - values.mean()
    assert half / (values.std(ddof=1) / math.sqrt(degrees + 1)) == pytest.approx(T_975[degrees], abs=1e-4)


def test_interval_of_600_prompts_against_the_integrated_density():
    values = np.random.default_rng(0).normal(size=600)
    half = interval(values).high - values.mean()
    t = half / (values.std(ddof=1) / math.sqrt(600))
    assert student_cdf(t, 599) == pytest.approx(0.975, abs=1e-6)


def test_intervals_hold_the_true_mean_95_times_in_100():
    rng = np.random.default_rng(1)
    for count in (5, 40):
        found = [interval(rng.normal(2.0, 3.0, size=count)) for _ in range(4000)]
        covered = np.mean([one.low <= 2.0 <= one.high for one in found])
        assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_comparison_is_paired():
    rng = np.random.default_rng(2)
    prompts = rng.normal(85, 10, size=200)  # prompts differ much more than the change does
    before, after = prompts + rng.normal(0, 0.5, 200), prompts + 0.5 + rng.normal(0, 0.5, 200)
    found = compare(before, after)
    assert found.difference == interval(after - before)
    assert found.difference.excludes_zero
    assert found.difference.mean == pytest.approx(found.after.mean - found.before.mean)
    unpaired = (found.before.high - found.before.low) / 2
    assert (found.difference.high - found.difference.low) / 2 < 0.1 * unpaired
    assert found.prompts == 200
    assert found.as_dict()["after"] == {"mean": found.after.mean, "low": found.after.low, "high": found.after.high}


def test_shuffling_one_side_widens_the_difference():
    rng = np.random.default_rng(3)
    before = rng.normal(size=100)
    after = before + 0.1
    widths = [found.high - found.low for found in (compare(before, a).difference for a in (after, after[::-1]))]
    assert widths[0] == pytest.approx(0, abs=1e-12)
    assert widths[1] > 0.1


def test_what_excludes_zero():
    assert Interval(1.0, 0.1, 1.9).excludes_zero
    assert Interval(-1.0, -1.9, -0.1).excludes_zero
    assert not Interval(0.5, 0.0, 1.0).excludes_zero
    assert not Interval(0.0, 0.0, 0.0).excludes_zero


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")], [[1.0, 2.0]]])
def test_intervals_of_what_has_none(values):
    with pytest.raises(ValueError, match=r"at least two|not finite"):
        interval(values)


def test_unequal_sides_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])


def test_reward_statistics_are_over_branches_then_over_prompts():
    # two prompts of three branches: the level differs by 10, the spread is over branches alone
    found = reward_statistics([[80.0, 82.0, 84.0], [91.0, 92.0, 93.0]])
    assert found["reward_mean"] == pytest.approx(87.0)
    assert found["reward_std"] == pytest.approx((math.sqrt(8 / 3) + math.sqrt(2 / 3)) / 2)
    assert (found["reward_best"], found["reward_worst"]) == (88.5, 85.5)


def test_table_lines_up_and_marks_what_excludes_zero():
    up, none = compare([80.0, 81.0, 82.0], [83.0, 84.5, 85.0]), compare([0.25, 0.5, 0.75], [0.5, 0.25, 0.75])
    lines = format_table({"reward": up, "all_non_spatial": none}, "title").splitlines()
    assert lines[0] == "title"
    assert lines[1].split() == ["metric", "before", "after", "difference", "95", "%", "interval"]
    assert lines[3].split()[:4] == ["reward", "81.00", "84.17", "+3.17"]
    assert lines[3].endswith("up")
    assert lines[4].startswith("all non spatial")
    assert not lines[4].endswith(("up", "down"))
    assert lines[4].split()[3:6] == ["0.500", "0.500", "+0.000"]
    assert lines[3].index("84.17") + len("84.17") == lines[4].rindex("0.500") + len("0.500")
    falling = format_table({"reward": compare([83.0, 84.5, 85.0], [80.0, 81.0, 82.0])})
    assert falling.endswith("down")


def test_final_table_puts_the_sharpened_scale_first_and_counts_guidance():
    one = {"reward": compare([1.0, 2.0], [2.0, 3.5]), "reward_colour": compare([1.0, 2.0], [2.0, 3.5])}
    text = final_table({1.0: one, 5.0: one, 3.0: one}, 3.0, 16, "CLIP")
    titles = [line for line in text.splitlines() if line.startswith("guidance")]
    assert titles == [
        "guidance 3, as sharpened: 2 prompts, 32 evaluations an image",
        "guidance 1: 2 prompts, 16 evaluations an image",
        "guidance 5: 2 prompts, 32 evaluations an image",
    ]
    assert text.count("reward colour") == 1


def test_cost_account_adds_up_and_reads_back():
    account = CostAccount()
    account.add_nfe("rollout", 160)
    account.add_nfe("rollout", 160)
    account.add_nfe("learn", 8)
    account.add_nfe("evaluate", 1000)
    account.add_seconds({"generate": 1.5, "decode": 0.25})
    account.add_seconds("generate", 0.5)
    account.add_images(12)
    account.note_memory("learner", 100)
    account.note_memory("learner", 90)
    contents = account.as_dict()
    assert contents["nfe"] == {
        "rollout": 320, "reference": 0, "learn": 8, "evaluate": 1000, "rank": 0, "training": 328, "total": 1328
    }  # fmt: skip
    assert contents["seconds"] == {"decode": 0.25, "generate": 2.0}
    assert contents["images_scored"] == 12
    assert contents["peak_memory_bytes"] == {"learner": 100}
    assert CostAccount.from_dict(contents).as_dict() == contents
    with pytest.raises(ValueError, match="no stage"):
        account.add_nfe("dream", 1)


def test_cost_account_times_a_block_that_fails():
    account = CostAccount()

    def fail():
        with account.timed("decode"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert account.seconds["decode"] > 0


def test_peak_memory_is_in_bytes_and_grows_with_what_is_held():
    before = peak_rss()
    assert before > 10 * 2**20
    held = np.ones(64 * 2**20, dtype=np.uint8)
    assert peak_rss() >= before
    account = CostAccount()
    account.note_memory("driver")
    assert account.peak_memory["driver"] >= held.nbytes
