"""The formulas of the searches against cases worked by hand."""

import math

import numpy as np
import pytest
import torch

from sharpening.rewards.base import Scores
from sharpening.search.demon import combine, demon_weights
from sharpening.search.fk_steering import Particles, effective_size, resample
from sharpening.search.free2guide import average_noise
from sharpening.search.paths import renoise
from sharpening.search.runs import candidates_for
from sharpening.search.scoring import Scored, score_candidates
from sharpening.search.sigma import karras_sigmas, karras_timesteps, sigma_of
from sharpening.search.zero_order import neighbours


def scored(rewards, valid=None):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    valid = torch.ones_like(rewards).bool() if valid is None else torch.tensor(valid)
    images = np.zeros((*rewards.shape, 1, 1, 3), np.uint8)
    return Scored(images, rewards, valid, {})


def test_top_candidates_never_hold_one_without_a_score():
    rewards = [[1.0, 3.0, 2.0, 9.0], [5.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], [-2.0, -1.0, -3.0, 0.0]]
    valid = [[True, True, True, False], [True, False, False, False], [False] * 4, [True, True, True, False]]
    top = scored(rewards, valid).top(3)
    assert top.tolist() == [[1, 2, 0], [0, 0, 0], [0, 1, 2], [1, 0, 2]]


def test_scores_go_to_their_prompts_and_failures_to_their_candidates():
    asked = []

    def score(images, prompts):
        asked.extend(prompts)
        return Scores(np.array([0.0, 1.0, np.nan, 3.0, 4.0, 5.0]), {3: "timeout"})

    found = score_candidates(score, np.arange(18, dtype=np.uint8).reshape(6, 1, 1, 3), ["a", "b"])
    assert asked == ["a", "a", "a", "b", "b", "b"]
    assert found.images[1, 2].tolist() == [[[15, 16, 17]]]
    assert found.valid.tolist() == [[True, True, False], [False, True, True]]
    assert found.rewards[found.valid].tolist() == [0.0, 1.0, 4.0, 5.0]
    assert found.reasons == {(0, 2): "not finite", (1, 0): "timeout"}


def test_a_reward_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 4 images"):
        score_candidates(lambda images, prompts: Scores(np.zeros(3)), np.zeros((4, 1, 1, 3), np.uint8), ["a", "b"])


def test_a_short_budget_is_shared_out_over_the_choices():
    assert candidates_for(purse=36, price=1, choices=9, most=16) == 4
    assert candidates_for(purse=36, price=1, choices=9, most=16, free=1) == 5
    assert candidates_for(purse=36, price=2, choices=9, most=16) == 2
    assert candidates_for(purse=900, price=1, choices=9, most=16) == 16
    assert candidates_for(purse=5, price=2, choices=9, most=16) == 2  # a choice needs two
    assert candidates_for(purse=3, price=2, choices=9, most=16) == 1  # not paid for: no choice
    assert candidates_for(purse=0, price=1, choices=1, most=16, free=1) == 1


def test_neighbours_by_hand():
    # n = (3, 4), so u = (0.6, 0.8); w = (1, 0) leaves v = (0.8, -0.6); 5 (0.6 u + 0.8 v) = (5, 0).
    found = neighbours(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), 0.6)
    torch.testing.assert_close(found.flatten(), torch.tensor([5.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("similarity", [-0.5, 0.0, 0.95])
def test_neighbours_keep_the_norm_and_the_cosine(similarity):
    draw = torch.Generator().manual_seed(0)
    pivot, w = torch.randn(2, 5, 4, 8, 8, generator=draw).unbind(0)
    found = neighbours(pivot, w, similarity)
    squared = pivot.flatten(1).square().sum(1)
    torch.testing.assert_close(found.flatten(1).square().sum(1), squared, rtol=1e-5, atol=0)
    torch.testing.assert_close((found * pivot).flatten(1).sum(1), similarity * squared, rtol=1e-4, atol=1e-3)


def test_tanh_weights_by_hand():
    # mean 2 and unbiased deviation 2 of (0, 2, 4); the fourth has no score.
    weights = demon_weights(torch.tensor([[0.0, 2.0, 4.0, 100.0]]), torch.tensor([[True, True, True, False]]), "tanh")
    torch.testing.assert_close(weights, torch.tensor([[-math.tanh(1), 0.0, math.tanh(1), 0.0]]))


def test_softmax_weights_by_hand():
    weights = demon_weights(
        torch.tensor([[0.0, 2.0, 4.0, 100.0]]), torch.tensor([[True, True, True, False]]), "softmax"
    )
    total = 1 + math.e + math.e**2
    torch.testing.assert_close(weights, torch.tensor([[1 / total, math.e / total, math.e**2 / total, 0.0]]))


@pytest.mark.parametrize("weighting", ["tanh", "softmax"])
def test_weights_are_equal_where_rewards_tell_nothing(weighting):
    rewards = torch.tensor([[5.0, 5.0, 5.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True] * 3, [True, False, False], [False] * 3])
    assert demon_weights(rewards, valid, weighting).tolist() == [[1.0] * 3] * 3


def test_combined_noise_by_hand_and_in_length():
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).view(1, 2, 1, 1, 2)
    found = combine(z, torch.tensor([[3.0, -4.0]]))
    torch.testing.assert_close(found.flatten(), math.sqrt(2) * torch.tensor([0.6, -0.8]))
    z = torch.randn(3, 7, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    found = combine(z, torch.randn(3, 7, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.full((3,), math.sqrt(128)))


def test_path_integral_average_by_hand():
    # λ = 2: weights are as exp(0) : exp(1), so 1 : e; the third noise has no score.
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]).view(1, 3, 1, 1, 2).repeat(2, 1, 1, 1, 1)
    rewards = torch.tensor([[4.0, 6.0, 50.0], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    found = average_noise(z, rewards, valid, 2.0)
    torch.testing.assert_close(found[0].flatten(), torch.tensor([1.0, math.e]) / (1 + math.e))
    assert found[1].flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("potential", "log_weights"),
    [
        ("difference", [[0.5, 1.0], [1.5, 0.5]]),  # λ r, then λ times the last reward
        ("max", [[0.5, 1.0], [2.0, 2.0]]),  # λ max r, added up
        ("sum", [[0.5, 1.0], [2.5, 2.5]]),  # λ Σ r, added up
    ],
)
def test_fk_weights_by_hand(potential, log_weights):
    particles = Particles.start(1, 2, potential)
    for rewards, expected in zip([[1.0, 2.0], [3.0, 1.0]], log_weights, strict=True):
        particles.weigh(scored([rewards]), potential, 0.5)
        torch.testing.assert_close(particles.log_weight, torch.tensor([expected]).double())
        torch.testing.assert_close(particles.weights(), torch.tensor([expected]).double().softmax(1))


def test_fk_maximum_counts_negative_rewards_too():
    particles = Particles.start(1, 2, "max")
    particles.weigh(scored([[-3.0, -1.0]]), "max", 1.0)
    assert particles.log_weight.tolist() == [[-3.0, -1.0]]


def test_multinomial_resampling_by_hand():
    weights = torch.tensor([[0.5, 0.0, 0.3, 0.2]])
    drawn = resample(weights, torch.tensor([[0.0, 0.49, 0.51, 0.81]]))
    assert drawn.tolist() == [[0, 0, 2, 3]]
    assert resample(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.5, 1 - 1e-12]])).tolist() == [[1, 1, 1]]


def test_effective_size_by_hand():
    weights = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    assert effective_size(weights).tolist() == [4.0, 1.0, 2.0]


def test_adaptive_resampling_waits_below_half_the_particles_and_carries_weights_on():
    particles = Particles.start(2, 4, "difference")
    u = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)
    particles.weigh(scored([[0.0, 0.1, 0.0, 0.1], [0.0, 9.0, 0.0, 0.0]]), "difference", 1.0)
    places = particles.resample(u, adaptive=True)
    assert places.tolist() == [[0, 1, 2, 3], [1, 1, 1, 1]]
    torch.testing.assert_close(particles.log_weight, torch.tensor([[0.0, 0.1, 0.0, 0.1], [0.0] * 4]).double())
    assert particles.summary.tolist() == [[0.0, 0.1, 0.0, 0.1], [9.0] * 4]
    particles.weigh(scored([[5.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]), "difference", 1.0)
    torch.testing.assert_close(particles.log_weight, torch.tensor([[5.0, 0.0, 0.0, 0.0], [0.0] * 4]).double())
    assert particles.resample(u, adaptive=True).tolist() == [[0, 0, 0, 0], [0, 1, 2, 3]]


def test_resampling_at_every_chance_ignores_the_effective_size():
    particles = Particles.start(1, 4, "difference")
    places = particles.resample(torch.tensor([[0.9, 0.1, 0.1, 0.6]]), adaptive=False)
    assert places.tolist() == [[3, 0, 0, 2]]


def test_a_particle_without_a_score_ends_and_all_without_one_stay():
    particles = Particles.start(2, 3, "sum")
    particles.weigh(scored([[7.0, 0.0, 7.0], [1.0, 2.0, 3.0]], [[False, True, False], [False] * 3]), "sum", 1.0)
    assert particles.weights().tolist() == [[0.0, 1.0, 0.0], [1 / 3] * 3]
    assert particles.resample(torch.tensor([[0.0, 0.5, 0.99]] * 2), adaptive=True).tolist() == [[1, 1, 1], [0, 1, 2]]


def test_renoising_by_hand():
    # From α² = 0.8 to α² = 0.2: a quarter of the signal's power stays, the noise's variance is 0.8 − 0.2/4.
    x, z = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 10.0)
    levels = [torch.tensor([a, 1 - a]).double().sqrt().unbind() for a in (0.8, 0.2, 1.0)]
    found = renoise(x, levels[0], levels[1], z)
    assert float(found) == pytest.approx(2 * 0.5 + 10 * math.sqrt(0.75))
    clean = renoise(x, levels[2], levels[1], z)
    assert float(clean) == pytest.approx(2 * math.sqrt(0.2) + 10 * math.sqrt(0.8))
    # A flow from α = 0.8, σ = 0.2 to α = 0.4, σ = 0.6: half the signal stays, and 0.36 − 0.04/4 of noise is added.
    flow = [(torch.tensor(a).double(), torch.tensor(1 - a).double()) for a in (0.8, 0.4)]
    assert float(renoise(x, flow[0], flow[1], z)) == pytest.approx(2 * 0.5 + 10 * math.sqrt(0.35))


def test_karras_levels_by_hand():
    # ρ = 2: the roots 4, 2.5 and 1 are evenly spaced.
    torch.testing.assert_close(karras_sigmas(16.0, 1.0, 3, 2.0), torch.tensor([16.0, 6.25, 1.0]).double())
    assert karras_sigmas(16.0, 1.0, 1, 2.0).tolist() == [16.0]


def test_karras_timesteps_are_the_nearest_integers(policy):
    times = karras_timesteps(policy, 901, 1, 12, 7.0)
    assert (times[0], times[-1], len(times)) == (901, 1, 12)
    assert times == sorted(set(times), reverse=True)
    table = policy.schedule.alphas_cumprod.numpy()
    sigma = np.sqrt((1 - table) / table)
    ends = sigma[901] ** (1 / 7), sigma[1] ** (1 / 7)
    for place, t in enumerate(times):
        wanted = (ends[0] + place / 11 * (ends[1] - ends[0])) ** 7
        assert t == np.abs(np.log(sigma[1:902] / wanted)).argmin() + 1
    assert float(sigma_of(policy, torch.tensor(500))) == pytest.approx(sigma[500])
    assert len(karras_timesteps(policy, 5, 1, 64, 7.0)) == 5  # no timestep twice
