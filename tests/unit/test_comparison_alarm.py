"""The alarm: silent on noise and on good training, loud on a real divergence."""

import itertools

import numpy as np
import pytest

from sharpening.evaluation.comparison.alarm import Checkpoint, slope, watch


def history(rewards, verifiers):
    return [Checkpoint(10 * i, float(r), float(v)) for i, (r, v) in enumerate(zip(rewards, verifiers, strict=True))]


def first_alarm(points):
    """The checkpoint at which a run that is looked at every time raises its first alarm, 0 for none."""
    looks = (n for n in range(6, len(points) + 1) if watch(points[:n]).status == "diverging")
    return next(looks, 0)


def test_slope_is_the_median_of_the_slopes_of_all_pairs():
    updates, values = np.array([0.0, 10.0, 20.0, 40.0]), np.array([1.0, 2.0, 9.0, 5.0])
    pairs = [
        (values[j] - values[i]) / (updates[j] - updates[i]) for i, j in itertools.combinations(range(4), 2)
    ]  # fmt: skip
    assert slope(updates, values, 0.9).mean == pytest.approx(np.median(pairs))


def test_no_more_than_1_run_in_20_raises_a_false_alarm_though_every_checkpoint_is_looked_at():
    rng = np.random.default_rng(0)
    runs = [history(0.5 * np.arange(30) + rng.normal(size=30), 0.6 + 0.01 * rng.normal(size=30)) for _ in range(60)]
    assert sum(first_alarm(run) > 0 for run in runs) <= 3


def test_a_divergence_is_found_and_not_before_it_begins():
    rng = np.random.default_rng(1)
    time = np.arange(40)
    truth = 0.6 + 0.002 * np.minimum(time, 20) - 0.004 * np.maximum(time - 20, 0)
    noises = [rng.normal(size=(2, 40)) for _ in range(20)]
    found = [first_alarm(history(0.5 * time + reward, truth + 0.01 * verifier)) for reward, verifier in noises]
    assert all(look == 0 or look > 20 for look in found)
    assert sum(look > 0 for look in found) >= 18


def test_both_rising_and_both_falling_are_no_divergence():
    up, down = np.arange(12.0), -np.arange(12.0)
    assert watch(history(up, 0.5 + 0.01 * up)).status == "quiet"
    assert watch(history(down, 0.5 + 0.01 * down)).status == "quiet"
    assert watch(history(down, 0.5 + 0.01 * up)).status == "quiet"
    assert watch(history(up, np.full(12, 0.5))).status == "quiet"


def test_a_certain_divergence_in_words():
    found = watch(history(60 + np.arange(8.0), 0.5 - 0.01 * np.arange(8.0)))
    assert found.status == "diverging"
    assert (found.first, found.last) == (0, 70)
    assert found.reward.mean == pytest.approx(0.1)
    assert found.verifier.mean == pytest.approx(-0.001)
    assert found.sentence.startswith("Alarm: from update 0 to 70 the training reward moved by +7 ")
    assert "share by -0.070 " in found.sentence


def test_too_few_checkpoints_and_bad_ones():
    found = watch(history([1, 2, 3], [0.5, 0.4, 0.3]))
    assert (found.status, found.reward) == ("too early", None)
    assert watch([]).status == "too early"
    with pytest.raises(ValueError, match="in order"):
        watch(history([1.0] * 8, [0.5] * 8)[::-1])
    with pytest.raises(ValueError, match="finite"):
        watch(history([1.0] * 8, [float("nan")] * 8))
    with pytest.raises(ValueError, match="window"):
        watch([], window=3)
