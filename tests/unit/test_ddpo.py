"""DDPO: advantages, the clipped objective, and its ratio on and off policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import PromptSource
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.ddpo import DDPO, advantages, clipped_surrogate
from sharpening.options import OptionError
from sharpening.options.ddpo import DDPOOptions

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
OPTIONS = DDPOOptions(branches=3, rollout_steps=6, timesteps_per_rollout=2, noisy_share=1.0)


def collect(policy, score, slots=(0, 1, 2, 3), **changes):
    batch = PromptSource(PROMPTS).batch(slots)
    return DDPO(replace(OPTIONS, **changes)).collect(policy, policy, score, batch, Seeds(11, 5, slots))


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 3.0, 5.0], [10.0, 10.0, 16.0]])
    # (1, 3, 5): mean 3, deviation √(8/3); (10, 10, 16): mean 12, deviation √8
    by_prompt = [[-(1.5**0.5), 0.0, 1.5**0.5], [-(0.5**0.5), -(0.5**0.5), 2**0.5]]
    np.testing.assert_allclose(advantages(rewards, "prompt", 5.0).numpy(), by_prompt, atol=1e-5)
    # all six: mean 7.5, deviation √(153.5 / 6)
    by_task = (rewards.numpy() - 7.5) / (153.5 / 6) ** 0.5
    np.testing.assert_allclose(advantages(rewards, "task", 5.0).numpy(), by_task, atol=1e-5)
    clipped = [[-0.5, 0.0, 0.5], [-0.5, -0.5, 0.5]]
    np.testing.assert_allclose(advantages(rewards, "prompt", 0.5).numpy(), clipped, atol=1e-7)


@pytest.mark.parametrize("over", ["prompt", "task"])
def test_equal_rewards_have_no_advantage(over):
    rewards = torch.full((7, 11), 57.3)  # whose float32 mean is not 57.3
    assert (advantages(rewards, over, 5.0) == 0).all()


def test_advantages_are_those_of_the_public_codes_fallback():
    """ "task" is what its tracker does before it has seen a prompt 16 times: statistics of the whole batch."""
    rewards = torch.from_numpy(np.random.default_rng(0).normal(60, 5, (4, 3)).astype(np.float32))
    batch = rewards.numpy().astype(np.float64)
    expected = (batch - np.mean(batch)) / (np.std(batch) + 1e-6)
    np.testing.assert_allclose(advantages(rewards, "task", 5.0).numpy(), expected, rtol=1e-5)


def test_objective_by_hand():
    ratio = torch.tensor([1.0, 1.3, 1.3, 0.7, 0.7, 1.1])
    advantage = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0, 3.0])
    # ε = 0.2; a gain is capped at 1.2 A, a loss is not: −2·1, −2·1.2, 2·1.3, −2·0.7, 2·0.8, −3·1.1
    expected = [-2.0, -2.4, 2.6, -1.4, 1.6, -3.3]
    assert clipped_surrogate(ratio, advantage, 0.2).tolist() == pytest.approx(expected)


def test_clipping_stops_the_gradient_on_the_side_already_won():
    ratio = torch.tensor([1.0, 1.3, 1.3, 0.7, 0.7, 1.1], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0, 3.0], dtype=torch.float64)
    clipped_surrogate(ratio, advantage, 0.2).sum().backward()
    assert ratio.grad.tolist() == [-2.0, 0.0, 2.0, -2.0, 0.0, -3.0]
    inside = ratio.detach()[[1, 2, 3, 4, 5]].requires_grad_()
    assert torch.autograd.gradcheck(lambda r: clipped_surrogate(r, advantage[1:], 0.2), (inside,))


def test_ratio_is_one_on_policy(policy, brightness):
    method, experience = DDPO(OPTIONS), collect(policy, brightness)
    metrics = method.loss(policy, experience).metrics
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-6)  # other batches than the rollout's round otherwise
    assert metrics["clip_share"] == 0
    with torch.no_grad():
        experience.log_prob = method._log_prob(policy, experience)
    metrics = method.loss(policy, experience).metrics
    assert (metrics["ratio"], metrics["divergence"], metrics["clip_share"]) == (1.0, 0.0, 0.0)
    assert metrics["loss"] == pytest.approx(-experience.advantage.mean().item(), abs=1e-7)


def test_on_policy_gradient_is_reinforce(policy, brightness):
    """∇L = −mean A ∇logp where ρ = 1."""
    method, experience = DDPO(OPTIONS), collect(policy, brightness)
    policy.denoiser.requires_grad_(True)
    weight = policy.denoiser.conv_out.weight
    (surrogate,) = torch.autograd.grad(method.loss(policy, experience).value, weight)
    score = -(experience.advantage * method._log_prob(policy, experience)).mean()
    (reinforce,) = torch.autograd.grad(score, weight)
    torch.testing.assert_close(surrogate, reinforce, rtol=1e-3, atol=1e-5 * reinforce.abs().max().item())


def test_loss_by_hand_off_policy(policy, brightness):
    experience = collect(policy, brightness)
    shift = torch.linspace(-0.3, 0.3, experience.groups)  # log ρ
    with torch.no_grad():
        experience.log_prob = DDPO(OPTIONS)._log_prob(policy, experience) - shift
    loss = DDPO(replace(OPTIONS, clip_range=0.1)).loss(policy, experience)
    ratio, advantage = np.exp(shift.numpy().astype(np.float64)), experience.advantage.numpy().astype(np.float64)
    expected = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.9, 1.1)).mean()
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)
    assert loss.metrics["ratio"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert loss.metrics["clip_share"] == pytest.approx((np.abs(ratio - 1) > 0.1).mean())
    assert loss.metrics["divergence"] == pytest.approx((shift.double() ** 2).mean().item() / 2, rel=1e-4)
    assert loss.metrics["gain"] == pytest.approx((shift.numpy() * advantage).mean(), rel=1e-4)


def test_no_gradient_where_all_ratios_are_beyond_the_range(policy, brightness):
    experience = collect(policy, brightness)
    won = torch.sign(experience.advantage)
    with torch.no_grad():
        experience.log_prob = DDPO(OPTIONS)._log_prob(policy, experience) - 0.01 * won
    policy.denoiser.requires_grad_(True)
    DDPO(OPTIONS).loss(policy, experience).value.backward()
    assert all((p.grad == 0).all() for p in policy.denoiser.parameters())


def test_every_sample_carries_its_advantage(policy, brightness):
    experience = collect(policy, brightness)
    rewards = experience.path_rewards.view(4, 6, 3)[:, 0]
    z = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)
    expected = z[:, :, None].expand(4, 3, 2).flatten()  # both steps of a sample
    torch.testing.assert_close(experience.advantage, expected, rtol=1e-3, atol=1e-3)
    states = experience.x_t.view(4, 3, 2, -1)
    timesteps = experience.timesteps.view(4, 3, 2)
    assert torch.equal(timesteps, timesteps[:, :1].expand(4, 3, 2))
    assert (states[:, 0] != states[:, 1]).any(-1).all()


def test_task_statistics_are_over_the_task(policy, brightness):
    together = collect(policy, brightness, advantage="task")
    rewards = together.path_rewards.view(4, 6, 3)[:, 0]
    z = (rewards - rewards.mean()) / rewards.std(correction=0)
    torch.testing.assert_close(together.advantage.view(4, 3, 2)[..., 0], z, rtol=1e-3, atol=1e-3)
    apart = Experience.cat([collect(policy, brightness, slots=(slot,), advantage="task") for slot in range(4)])
    assert not torch.allclose(together.advantage, apart.advantage, atol=1e-2)


def test_options_that_cannot_work_are_refused():
    for change in ({"branches": 1}, {"advantage_clip": 0.0}, {"advantage": "buffer"}):
        with pytest.raises(OptionError):
            replace(OPTIONS, **change)
    assert replace(OPTIONS, branches=5, timesteps_per_rollout=3).groups_per_prompt == 15
