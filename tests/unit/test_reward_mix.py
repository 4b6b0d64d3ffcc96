"""How several rewards become one, against numpy and by hand; without torch or Ray."""

import json
import pickle
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import zscore

from sharpening.evaluation.files import plain
from sharpening.rewards.base import RewardUnavailable, ScoreFn, Scores
from sharpening.rewards.combined import CombinedScore, Panel, load_rewards, scaled, seen_by
from sharpening.rewards.mix import Mix, ranks_by_prompt, share_below
from sharpening.rewards.requests import score_requests
from sharpening.rewards.statistics import Moments, before, columns, merge, of_row
from sharpening.slots import dropped_columns
from tests.own_rewards import Brightness

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)
PROMPTS = ["p", "p", "q", "p", "q", "r"]
WEIGHTS = {"a": 1.0, "b": -0.25}


def says(values: Sequence[float], failures: dict[int, str] | None = None) -> ScoreFn:
    return lambda images, prompts: Scores(np.array(values, np.float32)[: len(images)], failures or {})


# -- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_statistics_are_those_of_all_scores(offset: float) -> None:
    parts = [RNG.normal(offset, 2.0, size) for size in (1, 7, 30, 2)]
    whole = np.concatenate(parts)
    found = merge({"r": Moments.of(part)} for part in parts)["r"]
    assert found.count == 40
    assert found.mean == pytest.approx(whole.mean(), rel=1e-14)
    assert found.std == pytest.approx(whole.std(), rel=1e-9)
    assert Moments.of([np.nan, 1.0, np.inf, 3.0]) == Moments(2, 2.0, 2.0)
    # An empty set changes no bit: an update's tasks are merged the same whether they saw anything or not.
    assert found.merged(Moments()) is found
    assert Moments().merged(found) is found


def test_statistics_survive_a_metrics_file_and_leave_later_updates_out() -> None:
    seen = [{"a": Moments.of(RNG.normal(5, 1, 9)), "b-c": Moments.of(RNG.normal(0, 3, 8))} for _ in range(4)]
    rows = [{"update": update, **columns(statistics)} for update, statistics in enumerate(seen)]
    assert set(rows[0]) == {"update"} | {
        f"reward_{n}_{what}" for n in ("a", "b_c") for what in ("count", "mean", "std")
    }
    again = [json.loads(json.dumps(plain(row))) for row in rows]
    for version in range(5):
        assert before(again, version, ("a", "b-c")) == before(rows, version, ("a", "b-c"))
    assert before(rows, 0, ("a", "b-c")) == {}
    three = before(rows[:3], 3, ("a", "b-c"))
    assert before(rows, 3, ("a", "b-c")) == three
    for name in ("a", "b-c"):
        expected = merge(seen[:3])[name]
        assert three[name].count == expected.count
        assert (three[name].mean, three[name].std) == pytest.approx((expected.mean, expected.std), rel=1e-12)
    assert columns({"a": Moments()}) == {}  # a reward that scored nothing has no mean
    assert of_row({"update": 0}, ("a",)) == {}


def test_scores_that_do_not_differ_are_not_divided_by_their_rounding() -> None:
    same = np.full(7, 0.1, np.float32)
    assert np.abs(Moments.of(same).standardise(same)).max() < 1e-7
    assert Moments.of(same).standardise([1.1])[0] == pytest.approx(1.0)


# -- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    scores = np.array([3.0, 1.0, 5.0, 3.0, np.nan, 2.0, 2.0, 7.0])
    prompts = ["p", "p", "q", "p", "p", "s", "s", "p"]
    ranked = np.isfinite(scores)
    ranked[7] = False  # another reward has no score of it
    found = ranks_by_prompt(scores, prompts, ranked)
    # p: 1 < 3 = 3 are ranks 0 and twice the mean of 1 and 2, over 2; q: alone; s: both the same
    np.testing.assert_array_equal(found, [0.75, 0.0, 0.5, 0.75, np.nan, 0.5, 0.5, np.nan])


def test_mean_of_ranks() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 9.0]), np.array([30.0, 10.0, 20.0, 0.0])
    prompts = ["p", "p", "p", "q"]
    found = Mix({"a": 3.0, "b": 1.0}, "ranks").of_call({"a": a, "b": b}, prompts, {})
    np.testing.assert_allclose(found, [(0 * 3 + 1) / 4, (0.5 * 3 + 0) / 4, (1 * 3 + 0.5) / 4, 0.5])
    shunned = Mix({"a": 3.0, "b": -1.0}, "ranks").of_call({"a": a, "b": b}, prompts, {})
    np.testing.assert_allclose(shunned, [(0 - 1) / 4, (1.5 - 0) / 4, (3 - 0.5) / 4, (1.5 - 0.5) / 4])


def test_share_of_a_sample_that_scores_less() -> None:
    found = share_below([[0.0, 1.0], [2.5, np.nan]], np.array([3.0, 1.0, 1.0, 2.0]))
    np.testing.assert_array_equal(found, [[0.0, 0.25], [0.75, np.nan]])


# -- sums ------------------------------------------------------------------------------------------------------------


def test_the_sum_against_numpy() -> None:
    a, b = RNG.normal(50, 9, 6), RNG.normal(0.2, 0.01, 6)
    alone = Mix(WEIGHTS).of_call({"a": a, "b": b}, PROMPTS, {})
    np.testing.assert_allclose(alone, zscore(a) - 0.25 * zscore(b), rtol=1e-12)
    history = {"a": RNG.normal(40, 3, 100), "b": RNG.normal(0.1, 0.5, 80)}
    known = Mix(WEIGHTS).of_call({"a": a, "b": b}, PROMPTS, {n: Moments.of(v) for n, v in history.items()})
    expected = (a - history["a"].mean()) / history["a"].std() - 0.25 * (b - history["b"].mean()) / history["b"].std()
    np.testing.assert_allclose(known, expected, rtol=1e-12)
    # One score is no scale: the call's own is taken for that reward.
    few = Mix(WEIGHTS).of_call({"a": a, "b": b}, PROMPTS, {"a": Moments.of(history["a"]), "b": Moments.of([7.0])})
    mixed = (a - history["a"].mean()) / history["a"].std() - 0.25 * zscore(b)
    np.testing.assert_allclose(few, mixed, rtol=1e-12)


def test_a_single_reward_is_only_weighted() -> None:
    values = {"a": np.array([1.0, np.nan, 3.0])}
    for combine in ("sum", "ranks"):
        np.testing.assert_array_equal(Mix({"a": -2.0}, combine).of_call(values, ["p"] * 3, {}), [-2.0, np.nan, -6.0])


def test_a_sample_makes_calls_comparable() -> None:
    sample = {"a": RNG.normal(10, 2, 40), "b": RNG.normal(0, 1, 40)}
    whole = {"a": RNG.normal(11, 2, 9), "b": RNG.normal(1, 1, 9)}
    for combine in ("sum", "ranks"):
        mix = Mix(WEIGHTS, combine)
        at_once = mix.of_sample(whole, sample)
        one_by_one = [mix.of_sample({n: v[i : i + 1] for n, v in whole.items()}, sample)[0] for i in range(9)]
        np.testing.assert_array_equal(at_once, one_by_one)
    below = {name: (sample[name][:, None] < whole[name]).mean(0) for name in whole}
    np.testing.assert_allclose(at_once, (below["a"] - 0.25 * below["b"]) / 1.25)


def test_the_level_is_told_on_the_scale_of_the_first_update() -> None:
    first = columns({"a": Moments.of([1.0, 3.0]), "b": Moments.of([10.0, 30.0])})
    now = columns({"a": Moments.of([3.0, 5.0]), "b": Moments.of([0.0, 0.0])})
    assert Mix(WEIGHTS).level(now, first) == pytest.approx((4 - 2) / 1 - 0.25 * (0 - 20) / 10)
    assert Mix(WEIGHTS, "ranks").level(now, first) == pytest.approx((2 + 0.5) / 1.25)
    assert Mix(WEIGHTS).level(first, first) == 0
    assert Mix({"a": 2.0}).level(now, first) == pytest.approx(8.0)
    assert Mix(WEIGHTS).level({}, first) is None


# -- asking ----------------------------------------------------------------------------------------------------------


def test_a_failure_of_any_reward_is_a_failure_of_the_image() -> None:
    a = says([1, 2, np.inf, 4, 5, 6], {0: "timeout"})
    b = says([9, np.nan, 8, 7, 5, 5], {0: "rejected"})
    score = CombinedScore({"a": a, "b": b}, Mix(WEIGHTS))
    found = score(IMAGES, PROMPTS)
    assert found.failures == {0: "a: timeout", 1: "b: not finite", 2: "a: not finite"}
    np.testing.assert_array_equal(np.isnan(found.values), [True] * 3 + [False] * 3)
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.parts["a"], np.array([np.nan, 2, np.nan, 4, 5, 6], np.float32))
    np.testing.assert_array_equal(found.parts["b"], np.array([np.nan, np.nan, 8, 7, 5, 5], np.float32))
    za, zb = zscore([2.0, 4, 5, 6]), zscore([8.0, 7, 5, 5])  # each by all that it scored
    np.testing.assert_allclose(found.values[3:], za[1:] - 0.25 * zb[1:], rtol=1e-6)
    assert {name: m.count for name, m in score.seen.items()} == {"a": 4, "b": 4}
    assert dropped_columns(list(found.failures.items())) == {
        "dropped": 3, "dropped_a_not_finite": 1, "dropped_a_timeout": 1, "dropped_b_not_finite": 1,
    }  # fmt: skip


def test_a_combination_on_another_scale_starts_counting_anew() -> None:
    score = CombinedScore({"a": Brightness(0), "b": Brightness(1)}, Mix(WEIGHTS))
    one = scaled(score, {"a": Moments(4, 10.0, 4.0), "b": Moments(4, 20.0, 16.0)})
    other = scaled(score, {})
    assert seen_by(one) == {}
    first = one(IMAGES[:2], PROMPTS[:2])
    one(IMAGES[2:], PROMPTS[2:])
    assert seen_by(other) == seen_by(score) == {}
    a, b = (IMAGES[..., c].mean(axis=(1, 2)) / 2.55 for c in (0, 1))
    np.testing.assert_allclose(first.values, ((a - 10) - 0.25 * (b - 20) / 2)[:2], rtol=1e-5)
    assert seen_by(one)["a"].mean == pytest.approx(a.mean(), rel=1e-6)
    assert seen_by(one)["b"].std == pytest.approx(b.std(), rel=1e-5)
    assert scaled(Brightness(), {}) is not score  # a single reward is itself
    assert seen_by(Brightness()) == {}
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again(IMAGES, PROMPTS).values, one(IMAGES, PROMPTS).values)


def test_rewards_are_asked_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def meet(images: np.ndarray, prompts: Sequence[str]) -> Scores:
        meeting.wait(timeout=60)  # nobody passes unless all have come
        return Scores(np.zeros(len(images), np.float32))

    assert len(Panel({"a": meet, "b": meet, "c": meet})(IMAGES, PROMPTS)) == 3


def test_a_reward_that_is_down_or_answers_for_other_images_is_an_error() -> None:
    def down(images: np.ndarray, prompts: Sequence[str]) -> Scores:
        raise RewardUnavailable("b is down")

    with pytest.raises(RewardUnavailable, match="b is down"):
        CombinedScore({"a": Brightness(), "b": down}, Mix(WEIGHTS))(IMAGES, PROMPTS)
    for scores in ([1.0] * 5, [[1.0]] * 6):
        score = CombinedScore({"a": Brightness(), "b": lambda i, p, own=scores: Scores(np.array(own))}, Mix(WEIGHTS))
        with pytest.raises(ValueError, match=r"the reward 'b' answered with shape .* for 6 images"):
            score(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="do not fit the rewards a, c"):
        CombinedScore({"a": Brightness(), "c": down}, Mix(WEIGHTS))


def test_no_image_is_no_error() -> None:
    for combine in ("sum", "ranks"):
        found = CombinedScore({"a": Brightness(), "b": Brightness()}, Mix(WEIGHTS, combine))(IMAGES[:0], [])
        assert (len(found.values), found.failures) == (0, {})
        assert {name: len(values) for name, values in found.parts.items()} == {"a": 0, "b": 0}


def test_requests_that_share_a_call_get_their_own_parts_back() -> None:
    score = CombinedScore({"a": Brightness(0), "b": Brightness(1)}, Mix(WEIGHTS)).beside(
        {"a": np.array([40.0, 60]), "b": np.array([40.0, 60])}
    )
    first, second = score_requests(score, [(IMAGES[:2], PROMPTS[:2]), (IMAGES[2:], PROMPTS[2:])])
    whole = score(IMAGES, PROMPTS)
    for name in ("a", "b"):
        np.testing.assert_array_equal(np.concatenate([first.parts[name], second.parts[name]]), whole.parts[name])


def test_rewards_by_their_text() -> None:
    name = "tests.own_rewards:Brightness"
    assert isinstance(load_rewards(name), Brightness)
    found = load_rewards(f"{name}:2", options={"Brightness": {"channel": 1}}, device="cpu")(IMAGES, PROMPTS)
    np.testing.assert_allclose(found.values, 2 * IMAGES[..., 1].mean(axis=(1, 2)) / 2.55, rtol=1e-5)
