"""Branches against diffusers' own scheduler walking the same way."""

import pytest
import torch
from diffusers import DDIMScheduler

from sharpening.branching import branch
from sharpening.sampling import sample

STEPS = 10


def start(policy, batch, branches):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, batch, branches, *policy.latent_shape, generator=generator)
    return policy.encode([f"prompt {b}" for b in range(batch)]), x0, eps


def walk(policy, condition, x0, eps, index, states, guidance_scale):
    """The same walk for one branch, through DDIMScheduler."""
    scheduler = DDIMScheduler.from_config(policy._pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    grid = scheduler.timesteps
    x_t = scheduler.add_noise(x0[None], eps[None], grid[index : index + 1])
    for t in grid[index : index + states]:
        with torch.no_grad():
            output = policy.predict(x_t, t[None], condition, guidance_scale).eps
        result = scheduler.step(output, t, x_t)
        yield x_t[0], result.pred_original_sample[0]
        x_t = result.prev_sample


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_branches_walk_as_the_scheduler_does(policy, guidance_scale):
    condition, x0, eps = start(policy, batch=4, branches=2)
    index = torch.tensor([STEPS - 1, STEPS - 2, 0, 4])
    grid = policy.timesteps(STEPS)
    trajectories = branch(policy, condition, x0, index, eps, 3, grid, guidance_scale)
    assert trajectories.mask.tolist() == [[True, False, False], [True, True, False], [True] * 3, [True] * 3]
    for b in range(4):
        valid = int(trajectories.mask[b].sum())
        assert trajectories.timesteps[b, :valid].tolist() == grid[index[b] : index[b] + 3].tolist()
        for k in range(2):
            row = condition.index([b])
            expected = list(walk(policy, row, x0[b, k], eps[b, k], int(index[b]), valid, guidance_scale))
            for i, (x_t, predicted) in enumerate(expected):
                torch.testing.assert_close(trajectories.x_t[b, k, i], x_t, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(trajectories.x0[b, k, i], predicted, atol=1e-3, rtol=1e-3)


def test_only_states_that_exist_are_evaluated(policy):
    condition, x0, eps = start(policy, batch=3, branches=4)
    index = torch.tensor([STEPS - 1, STEPS - 2, 0])
    trajectories = branch(policy, condition, x0, index, eps, 3, policy.timesteps(STEPS))
    assert policy.nfe == 4 * (1 + 2 + 3)
    assert (trajectories.x_t[~trajectories.mask[:, None].expand(3, 4, 3)] == 0).all()
    policy.nfe = 0
    branch(policy, condition, x0, index, eps, 1, policy.timesteps(STEPS), guidance_scale=2.0)
    assert policy.nfe == 2 * 12  # one guided prediction a branch, no step beyond the last state


def test_effective_steps_for_every_timestep(policy):
    condition, x0, eps = start(policy, batch=STEPS, branches=1)
    trajectories = branch(policy, condition, x0, torch.arange(STEPS), eps, 4, policy.timesteps(STEPS))
    steps_left = torch.arange(STEPS).flip(0)  # index of t, counted from the clean end
    assert torch.equal(trajectories.mask.sum(1), torch.minimum(torch.tensor(4), 1 + steps_left))


def test_a_branch_from_the_noisiest_state_is_the_sampler(policy):
    """All states from the first timestep on: the last state's step would be the sampler's image."""
    condition, x0, eps = start(policy, batch=1, branches=1)
    grid = policy.timesteps(STEPS)
    trajectories = branch(policy, condition, torch.zeros_like(x0), torch.tensor([0]), eps, STEPS, grid)
    first = policy.schedule.sigma(grid[0]).float() * eps[0]  # x_t of a clean latent of zeros
    expected = sample(policy, condition, first, STEPS)
    last = grid[-1:]
    prediction = policy.predict(trajectories.x_t[0, 0, -1:], last, condition)
    x_prev = policy.step(trajectories.x_t[0, 0, -1:], last, policy.previous(last, STEPS), prediction)
    torch.testing.assert_close(x_prev, expected, atol=1e-3, rtol=1e-3)


def test_branches_leave_their_inputs_alone_and_keep_no_graph(policy):
    condition, x0, eps = start(policy, batch=2, branches=2)
    policy.denoiser.requires_grad_(True)
    copies = x0.clone(), eps.clone()
    trajectories = branch(policy, condition, x0, torch.tensor([0, 5]), eps, 3, policy.timesteps(STEPS))
    assert torch.equal(x0, copies[0])
    assert torch.equal(eps, copies[1])
    assert not trajectories.x_t.requires_grad
    assert not trajectories.x0.requires_grad
