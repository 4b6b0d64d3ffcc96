"""The full sampler: noise → clean latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.policies.base import Condition, Policy


@torch.no_grad()
def sample(
    policy: Policy,
    condition: Condition,
    noise: Float[Tensor, "batch channel height width"],
    steps: int,
    guidance_scale: float = 1.0,
) -> Float[Tensor, "batch channel height width"]:
    """Deterministic DDIM sampling; draws what the diffusers pipeline draws from the same noise.

    Args:
        policy: the model.
        condition: one row a latent.
        noise: standard normal latents at the noisy end.
        steps: sampler steps.
        guidance_scale: classifier-free guidance; 1 is none.

    Returns:
        Clean latents x_0, without a graph.
    """
    x_t = noise.to(policy.device)
    for t in policy.timesteps(steps).tolist():
        rows = torch.full((len(x_t),), t, dtype=torch.long, device=x_t.device)
        prediction = policy.predict(x_t, rows, condition, guidance_scale)
        x_t = policy.step(x_t, rows, policy.previous(rows, steps), prediction)
    return x_t
