"""What every search promises: its budget, its account, honest failures, and independence of the batch."""

from itertools import pairwise

import numpy as np
import pytest

from sharpening.options import OptionError
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.search import SEARCHES, load_search
from sharpening.search.base import BudgetTooSmall, SearchSeeds
from sharpening.seeds import noise

PROMPTS = ["a red circle", "two squares", "a cross"]
SEEDS = SearchSeeds(11, (0, 1, 2))
STEPS = 4
SMALL = {
    "random": ("random", {}),
    "zero_order": ("zero_order", {"neighbours": 3, "keep_pivot": False}),
    "zero_order, pivot kept": ("zero_order", {"neighbours": 2, "keep_pivot": True}),
    "paths": (
        "paths",
        {"paths": 2, "expansions": 2, "first_steps": 1, "forward_steps": 1, "backward_steps": 2},
    ),
    "demon": ("demon", {"candidates": 3, "estimate_steps": 2}),
    "demon, softmax and heun": ("demon", {"candidates": 2, "weighting": "softmax", "solver": "heun"}),
    "free2guide": ("free2guide", {"candidates": 3, "guided_steps": 2}),
    "free2guide, path integral": ("free2guide", {"candidates": 2, "guided_steps": 2, "form": "path_integral"}),
    "fk_steering": ("fk_steering", {"particles": 3, "resample_to": 2, "reward_scale": 3.0}),
    "fk_steering, one run": ("fk_steering", {"particles": 0, "potential": "max", "adaptive": False}),
}


def make(case, **options):
    name, own = SMALL[case]
    return load_search(name, steps=STEPS, **own, **options)


def smallest(case):
    return 2 * STEPS - 1 if "heun" in case else STEPS


def fails(reward, when):
    """The same reward, without a score where `when(value, prompt)` holds."""

    def score(images, prompts):
        values = reward(images, prompts).values
        failures = {i: "timeout" for i, pair in enumerate(zip(values, prompts, strict=True)) if when(*pair)}
        return Scores(values, failures)

    return score


def test_all_searches_are_registered():
    assert {name for name, _ in SMALL.values()} == set(SEARCHES)


@pytest.mark.parametrize("budget", [7, 34])
@pytest.mark.parametrize("case", SMALL)
def test_nfe_is_what_reached_the_denoiser_and_stays_within_the_budget(policy, brightness, case, budget):
    seen = []
    policy.denoiser.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    policy.nfe, policy.max_batch = 1000, 5
    result = make(case).search(policy, brightness, PROMPTS, budget, SEEDS)
    assert result.nfe == sum(seen) == policy.nfe - 1000
    assert result.nfe <= budget * len(PROMPTS)
    assert result.nfe > (budget - smallest(case)) * len(PROMPTS)  # nothing is left that would pay for another image


@pytest.mark.parametrize("case", SMALL)
def test_a_guided_evaluation_counts_twice(policy, brightness, case):
    seen = []
    policy.denoiser.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    plain = make(case).search(policy, brightness, PROMPTS, 15, SEEDS)
    assert plain.nfe == sum(seen)
    seen.clear()
    guided = make(case, guidance_scale=3.0).search(policy, brightness, PROMPTS, 31, SEEDS)
    assert guided.nfe == sum(seen) == 2 * plain.nfe
    assert guided.images_scored == plain.images_scored


@pytest.mark.parametrize("case", SMALL)
def test_a_budget_below_one_image_is_refused_by_naming_the_smallest(policy, brightness, case):
    with pytest.raises(BudgetTooSmall, match=f"pass {2 * smallest(case)} or more") as refused:
        make(case, guidance_scale=2.0).search(policy, brightness, PROMPTS, 2 * smallest(case) - 1, SEEDS)
    assert refused.value.smallest == 2 * smallest(case)
    assert policy.nfe == 0
    result = make(case, guidance_scale=2.0).search(policy, brightness, PROMPTS, 2 * smallest(case), SEEDS)
    assert result.nfe == 2 * smallest(case) * len(PROMPTS)


@pytest.mark.parametrize("case", SMALL)
def test_rewards_are_those_of_the_images_and_the_trace_leads_to_them(policy, brightness, case):
    scored = []

    def score(images, prompts):
        scored.append(len(images))
        return brightness(images, prompts)

    result = make(case).search(policy, score, PROMPTS, 21, SEEDS)
    np.testing.assert_allclose(result.rewards, brightness(result.images, PROMPTS).values, rtol=1e-6)
    assert (result.failures, result.images_scored) == ({}, sum(scored))
    assert result.images.shape == (3, 64, 64, 3)
    assert set(result.seconds) == {"denoise", "decode", "reward"}
    for row, trace in enumerate(result.trace):
        assert trace[-1][1] == result.rewards[row]
        assert trace[0][0] > 0
        assert trace[-1][0] <= 21
        assert all(before[0] < after[0] and before[1] <= after[1] for before, after in pairwise(trace))


@pytest.mark.parametrize("case", SMALL)
def test_a_prompt_alone_is_what_it_is_in_a_batch(policy, brightness, case):
    together = make(case).search(policy, brightness, PROMPTS, 17, SEEDS)
    alone = make(case).search(policy, brightness, PROMPTS[1:2], 17, SearchSeeds(11, (1,)))
    np.testing.assert_allclose(alone.images[0].astype(int), together.images[1].astype(int), atol=1)
    np.testing.assert_allclose(alone.rewards[0], together.rewards[1], atol=0.05)
    assert alone.trace[0][-1][0] == together.trace[1][-1][0]
    elsewhere = make(case).search(policy, brightness, PROMPTS[1:2], 7, SearchSeeds(11, (2,)))
    assert (np.abs(elsewhere.images[0].astype(int) - alone.images[0]) > 1).any()


def test_a_larger_budget_never_makes_random_search_worse(policy, brightness):
    rewards = [make("random").search(policy, brightness, PROMPTS, STEPS * count, SEEDS).rewards for count in (1, 2, 5)]
    for fewer, more in pairwise(rewards):
        assert (more >= fewer - 0.02).all()  # the batch's size moves low bits
    assert (rewards[-1] > rewards[0]).any()


def test_random_search_is_the_best_of_its_samples(policy, brightness):
    found = []

    def score(images, prompts):
        found.extend(images.astype(int))
        return brightness(images, prompts)

    result = make("random").search(policy, score, PROMPTS[:1], 5 * STEPS, SearchSeeds(3, (7,)))
    condition = policy.encode(PROMPTS[:1])
    draws = [noise(policy.latent_shape, 3, "search", 7, "latent", k)[None] for k in range(5)]
    images = np.concatenate([policy.decode(sample(policy, condition, draw, STEPS)) for draw in draws])
    np.testing.assert_allclose(np.stack(found), images.astype(int), atol=1)
    values = brightness(images, PROMPTS[:1] * 5).values
    assert result.rewards[0] == pytest.approx(values.max(), abs=0.02)
    np.testing.assert_allclose(result.images[0].astype(int), images[values.argmax()].astype(int), atol=1)
    # rounds of 1, 2 and what is left
    assert result.trace[0] == [(STEPS * n, pytest.approx(values[:n].max(), abs=0.02)) for n in (1, 3, 5)]


@pytest.mark.parametrize("case", SMALL)
def test_an_image_whose_score_failed_is_never_returned(policy, brightness, case):
    free = make(case).search(policy, brightness, PROMPTS, 18, SEEDS)
    limit = float(free.rewards.min())  # at least the best image of each prompt fails
    result = make(case).search(policy, fails(brightness, lambda value, prompt: value >= limit), PROMPTS, 18, SEEDS)
    scored = [b for b in range(3) if b not in result.failures]
    assert (result.rewards[scored] < limit).all()
    assert np.isnan(result.rewards[list(result.failures)]).all()
    np.testing.assert_allclose(result.rewards[scored], brightness(result.images, PROMPTS).values[scored], rtol=1e-6)


@pytest.mark.parametrize("case", SMALL)
def test_a_prompt_without_any_score_is_a_failure_and_the_others_are_as_before(policy, brightness, case):
    free = make(case).search(policy, brightness, PROMPTS, 14, SEEDS)
    score = fails(brightness, lambda value, prompt: prompt == PROMPTS[1])
    result = make(case).search(policy, score, PROMPTS, 14, SEEDS)
    assert result.failures == {1: "timeout"}
    assert np.isnan(result.rewards[1])
    assert not result.images[1].any()
    assert result.trace[1] == []
    np.testing.assert_array_equal(result.images[[0, 2]], free.images[[0, 2]])
    assert result.nfe == free.nfe


def test_a_reward_that_is_not_finite_is_a_failure(policy):
    score = lambda images, prompts: Scores(np.full(len(images), np.inf))  # noqa: E731
    result = make("free2guide").search(policy, score, PROMPTS, 12, SEEDS)
    assert result.failures == dict.fromkeys(range(3), "not finite")


def test_searches_keep_no_graph_and_leave_the_model_alone(policy, brightness):
    before = policy.trainable_state()
    make("demon").search(policy, brightness, PROMPTS[:1], 20, SearchSeeds(0, (0,)))
    after = policy.trainable_state()
    assert all((before[name] == after[name]).all() for name in before)
    assert all(parameter.grad is None for parameter in policy.denoiser.parameters())


@pytest.mark.parametrize(
    ("name", "options", "refused"),
    [
        ("random", {"steps": 0}, "steps"),
        ("random", {"guidance_scale": float("nan")}, "guidance_scale"),
        ("random", {"neighbours": 3}, "neighbours"),
        ("zero_order", {"similarity": 1.0}, "similarity"),
        ("zero_order", {"neighbours": 0}, "neighbours"),
        ("paths", {"forward_steps": 4, "backward_steps": 4}, "backward_steps"),
        ("paths", {"paths": 0}, "paths"),
        ("demon", {"candidates": 1}, "candidates"),
        ("demon", {"weighting": "linear"}, "weighting"),
        ("demon", {"beta": 0.0}, "beta"),
        ("demon", {"solver": "euler"}, "solver"),
        ("free2guide", {"form": "softmax"}, "form"),
        ("free2guide", {"temperature": -1.0}, "temperature"),
        ("fk_steering", {"potential": "min"}, "potential"),
        ("fk_steering", {"eta": 0.0}, "eta"),
        ("fk_steering", {"resample_every": 0}, "resample_every"),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, refused):
    with pytest.raises(OptionError) as error:
        load_search(name, **options)
    assert error.value.option == refused


def test_an_unknown_search_is_refused_by_naming_the_known_ones():
    with pytest.raises(ValueError, match="unknown search 'beam'; choose one of random, zero_order"):
        load_search("beam")


def test_prompts_need_as_many_indices(policy, brightness):
    with pytest.raises(ValueError, match="3 prompts came with 1 indices"):
        make("random").search(policy, brightness, PROMPTS, 20, SearchSeeds(0, (0,)))
