"""D3PO: preferences from rewards, and the loss of a pair's steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import PromptSource
from sharpening.methods.base import Seeds
from sharpening.methods.d3po import D3PO, preferences, step_preference
from sharpening.options import OptionError
from sharpening.options.d3po import D3POOptions
from sharpening.rewards.base import Scores

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
OPTIONS = D3POOptions(rollout_steps=6, timesteps_per_rollout=2, noisy_share=1.0)


def collect(policy, score, reference=None, slots=(0, 1, 2, 3), **changes):
    batch = PromptSource(PROMPTS).batch(slots)
    reference = reference or policy.frozen_copy()
    return D3PO(replace(OPTIONS, **changes)).collect(policy, reference, score, batch, Seeds(11, 5, slots))


def perturb(policy, scale=0.02):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))


def test_preferences():
    rewards = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [-1.0, -0.5]])
    assert preferences(rewards).tolist() == [[1, -1], [-1, 1], [0, 0], [-1, 1]]


def test_loss_by_hand():
    ratio = torch.tensor([[1.05, 0.98], [1.05, 0.98], [1.5, 0.2], [1.05, 0.98]], dtype=torch.float64)
    h = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    gap = math.log(1.05) - math.log(0.98)
    clipped = math.log(1.1) - math.log(0.9)
    expected = [math.log1p(math.exp(-2 * z)) for z in (gap, -gap, clipped, 0.0)]
    assert step_preference(ratio.log(), h, 2.0, 0.1).tolist() == pytest.approx(expected, rel=1e-12)


def test_gradients_against_finite_differences_and_clipping():
    log_ratio = torch.tensor([[0.05, -0.02], [0.3, -0.02], [0.3, -0.5]], dtype=torch.float64, requires_grad=True)
    h = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: step_preference(r, h, 2.0, 0.1), (log_ratio,))
    step_preference(log_ratio, h, 2.0, 0.1).sum().backward()
    assert (log_ratio.grad == 0).tolist() == [[False, False], [True, False], [True, True]]
    # d/dr −log σ(β h·r) = −β h σ(−β h·r)
    assert log_ratio.grad[0, 0].item() == pytest.approx(-2 / (1 + math.exp(2 * 0.07)), rel=1e-12)


def test_ratios_near_one_keep_their_digits():
    """What exp and log in float32 would round away: a log ratio of 1e-8."""
    log_ratio = torch.tensor([[1e-8, 0.0]], requires_grad=True)
    h = torch.tensor([[1.0, -1.0]])
    margin = math.log(2) - step_preference(log_ratio.double(), h.double(), 1.0, 0.1).item()
    assert margin == pytest.approx(0.5e-8, rel=1e-3)
    assert torch.exp(log_ratio).log()[0, 0].item() == 0


def test_a_tie_gives_no_gradient(policy):
    def same(images, prompts):
        return Scores(np.full(len(images), 57.3, np.float32))

    experience = collect(policy, same)
    assert (experience.preference == 0).all()
    perturb(policy)
    policy.denoiser.requires_grad_(True)
    loss = D3PO(OPTIONS).loss(policy, experience)
    assert loss.value.item() == pytest.approx(math.log(2), rel=1e-6)
    assert loss.metrics["tie_share"] == 1
    loss.value.backward()
    assert all((p.grad == 0).all() for p in policy.denoiser.parameters())


def test_loss_starts_at_log_2(policy, brightness):
    loss = D3PO(OPTIONS).loss(policy, collect(policy, brightness))
    assert loss.value.item() == pytest.approx(math.log(2), abs=1e-6)
    assert loss.metrics["clip_share"] == 0
    assert loss.metrics["log_ratio"] == pytest.approx(0.0, abs=1e-6)


def test_the_preferred_sample_is_the_one_with_the_higher_reward(policy, brightness):
    experience = collect(policy, brightness)
    better = experience.path_rewards.argmax(1)
    assert experience.preference[torch.arange(8), better].tolist() == [1.0] * 8
    assert experience.preference.sum(1).tolist() == [0.0] * 8
    gap = experience.path_rewards.max(1).values - experience.path_rewards.min(1).values
    assert torch.equal(experience.statistics()["reward_gap"], gap)


def test_both_samples_start_from_one_latent(policy, brightness):
    experience = collect(policy, brightness, timesteps_per_rollout=5)  # all steps but the last
    first = experience.timesteps == policy.timesteps(6)[0]
    assert first.sum() == 4
    assert torch.equal(experience.x_t[first][:, 0], experience.x_t[first][:, 1])
    assert (experience.x_t[~first][:, 0] != experience.x_t[~first][:, 1]).flatten(1).any(1).all()
    steps_on = experience.x_prev.view(4, 5, 2, 8, 8, 8)[:, :-1]
    assert torch.equal(steps_on, experience.x_t.view(4, 5, 2, 8, 8, 8)[:, 1:])


def test_ratios_are_to_the_reference(policy, brightness):
    reference = policy.frozen_copy()
    perturb(policy)
    experience = collect(policy, brightness, reference)
    method = D3PO(replace(OPTIONS, clip_range=0.05, beta=3.0))
    with torch.no_grad():
        assert torch.equal(method._log_prob(reference, experience), experience.reference_log_prob)
        log_ratio = (method._log_prob(policy, experience) - experience.reference_log_prob).double().numpy()
    assert np.abs(log_ratio).max() > 0.05 > np.abs(log_ratio).min()
    h = experience.preference.double().numpy()
    ratio = np.clip(np.exp(log_ratio), 0.95, 1.05)
    expected = -np.log(1 / (1 + np.exp(-(3.0 * h * np.log(ratio)).sum(1))))
    loss = method.loss(policy, experience)
    assert loss.value.item() == pytest.approx(expected.mean(), rel=1e-5)
    assert loss.metrics["accuracy"] == pytest.approx(((h * log_ratio).sum(1) > 0).mean())
    assert loss.metrics["log_ratio_gap"] == pytest.approx((h * log_ratio).sum(1).mean(), rel=1e-4)


def test_options_that_cannot_work_are_refused():
    with pytest.raises(OptionError):
        D3POOptions(beta=0.0)
    assert replace(OPTIONS, timesteps_per_rollout=5).groups_per_prompt == 5
