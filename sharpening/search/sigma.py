"""Karras' parametrisation over a policy (arXiv 2206.00364): `x_edm = x_t / α_t` at noise level `σ = σ_t / α_t`."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.policies.base import Policy

MOST_NOISE = 80.0
"""Noise level that Karras' grids start from at most (their σ_max). Where a model's first latent is pure noise (a flow,
zero terminal SNR) the level is infinite, and between that and here nothing is decided."""


def sigma_of(policy: Policy, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Noise level of a latent divided by its signal level, `σ_t / α_t = snr(t)^{-1/2}`.

    Args:
        policy: the model.
        t: timesteps; below 0 is the clean end.

    Returns:
        float64, on t's device; infinite for pure noise.
    """
    return policy.snr(t).double().rsqrt()


def karras_sigmas(high: float, low: float, steps: int, rho: float) -> Float[Tensor, " steps"]:
    """Noise levels evenly spaced in `σ^{1/ρ}` (arXiv 2206.00364, Eq. 5, without its last level 0).

    Args:
        high: the first level.
        low: the last level.
        steps: how many, both ends included; one alone is the first.
        rho: ρ.

    Returns:
        float64, descending.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def karras_timesteps(policy: Policy, first: int, last: int, steps: int, rho: float) -> list[int]:
    """The integer timesteps whose noise levels are nearest to Karras' grid, on a logarithmic scale.

    Args:
        policy: the model.
        first: the noisiest timestep; it is taken even where its level is beyond `MOST_NOISE`.
        last: the least noisy one.
        steps: levels of the grid.
        rho: ρ.

    Returns:
        Timesteps, descending; fewer than `steps` where levels are nearest to the same timestep.
    """
    high, low = sigma_of(policy, torch.tensor([first, last], device=policy.device)).tolist()
    if high <= MOST_NOISE:
        wanted = karras_sigmas(high, low, steps, rho)
    else:
        wanted = karras_sigmas(MOST_NOISE, low, max(steps - 1, 1), rho)[: steps - 1]
    nearest = _nearest_timesteps(policy, wanted.to(policy.device), first, last).cpu()
    return torch.cat([nearest, torch.tensor([first])]).unique(sorted=True).flip(0).tolist()


def _nearest_timesteps(policy: Policy, sigmas: Float[Tensor, " steps"], first: int, last: int) -> Int[Tensor, " steps"]:
    """Bisection, as levels rise with the timestep and a flow has too many timesteps to look at all."""
    low, high = torch.full_like(sigmas, last, dtype=torch.long), torch.full_like(sigmas, first, dtype=torch.long)
    while (low < high).any():
        middle = (low + high) // 2
        reached = sigma_of(policy, middle) >= sigmas
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
    below = (high - 1).clamp(min=last)
    nearer = sigmas / sigma_of(policy, below) <= sigma_of(policy, high) / sigmas
    return torch.where(nearer, below, high)
