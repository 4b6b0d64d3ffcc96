"""Karras' parametrisation over a policy (arXiv 2206.00364): `x_edm = x_t / α_t` at noise level `σ = σ_t / α_t`."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.policies.base import Policy


def sigma_of(policy: Policy, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Noise level of a latent divided by its signal level, `σ_t / α_t = snr(t)^{-1/2}`.

    Args:
        policy: the model.
        t: timesteps; below 0 is the clean end.

    Returns:
        float64, on t's device.
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
        first: the noisiest timestep.
        last: the least noisy one.
        steps: levels of the grid.
        rho: ρ.

    Returns:
        Timesteps, descending; fewer than `steps` where levels are nearest to the same timestep.
    """
    every = torch.arange(last, first + 1)
    known = sigma_of(policy, every.to(policy.device)).cpu().log()
    wanted = karras_sigmas(math.exp(known[-1]), math.exp(known[0]), steps, rho).log()
    nearest = every[(known[None] - wanted[:, None]).abs().argmin(1)]
    return nearest.unique(sorted=True).flip(0).tolist()
