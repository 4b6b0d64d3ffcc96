"""(x_0, t, n, m) → branches: short denoising trajectories and the clean image each of their states predicts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sharpening.policies.base import Condition, Policy


@dataclass(frozen=True)
class Trajectories:
    """n branches of m states for each of B starts, `τ_i = {x_t^i, …, x_{t−m}^i}`.

    Attributes:
        x_t: states; zeros where one does not exist.
        x0: clean latent predicted at each state, `x̂_0(x_t, t)` (Eq. 5–6); zeros where a state does not exist.
        timesteps: timestep of each state; those that do not exist repeat the grid's last.
        mask: which states exist; `m_eff = min(m, 1 + steps left after t)` of them do, from the front.
        eps: the noise each branch started with.
    """

    x_t: Float[Tensor, "batch branch step channel height width"]
    x0: Float[Tensor, "batch branch step channel height width"]
    timesteps: Int[Tensor, "batch step"]
    mask: Bool[Tensor, "batch step"]
    eps: Float[Tensor, "batch branch channel height width"]


@torch.no_grad()
def branch(
    policy: Policy,
    condition: Condition,
    x0: Float[Tensor, "batch branch channel height width"],
    t_index: Int[Tensor, " batch"],
    eps: Float[Tensor, "batch branch channel height width"],
    steps: int,
    grid: Int[Tensor, " time"],
    guidance_scale: float = 1.0,
    predict_x0: bool = True,
) -> Trajectories:
    """Noise clean latents to t and walk m states down the sampler's grid (Algorithms 1 and 2, Eq. 5–6).

    A state's prediction serves both its x̂_0 and the step to the next state; only states that exist are evaluated.

    Args:
        policy: the model.
        condition: one row a start.
        x0: a clean latent for each branch.
        t_index: place of the first state's timestep in the grid, 0 being the noisiest.
        eps: a noise for each branch.
        steps: m, states a branch has if the grid does not end before.
        grid: the sampler's timesteps, descending.
        guidance_scale: classifier-free guidance; 1 is none.
        predict_x0: whether x̂_0 is wanted; where nobody judges it, it stays zero, and only those predictions are
            made that a next state comes of.

    Returns:
        The trajectories, without a graph.
    """
    device = x0.device
    grid = grid.to(device)
    branches = x0.shape[1]
    place = t_index.to(device)[:, None] + torch.arange(steps, device=device)
    mask = place < len(grid)
    timesteps = grid[place.clamp(max=len(grid) - 1)]

    mask_rows = mask.repeat_interleave(branches, dim=0)  # (B * n, m)
    t_rows = timesteps.repeat_interleave(branches, dim=0)
    condition = condition.repeat_interleave(branches)
    x = policy.add_noise(x0.flatten(0, 1), eps.flatten(0, 1), t_rows[:, 0])
    states = x.new_zeros(len(x), steps, *x.shape[1:])
    predicted = torch.zeros_like(states)
    for i in range(steps):
        rows = mask_rows[:, i].nonzero().squeeze(1)
        states[rows, i] = x[rows]
        if not predict_x0:  # a prediction serves the next state alone
            rows = mask_rows[:, i + 1].nonzero().squeeze(1) if i + 1 < steps else rows[:0]
        if len(rows) == 0:
            break
        t = t_rows[rows, i]
        prediction = policy.predict(x[rows], t, condition.index(rows), guidance_scale)
        if predict_x0:
            predicted[rows, i] = prediction.x0
        if i + 1 < steps:
            x[rows] = policy.step(x[rows], t, policy.previous(t, len(grid)), prediction)
    shape = (len(x0), branches)
    return Trajectories(states.unflatten(0, shape), predicted.unflatten(0, shape), timesteps, mask, eps)
