"""The losses over selected trajectories: Eq. 9, Eq. 11 and their relatives. Errors are per-element means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def mean_squared_error(
    eps: Float[Tensor, "*batch channel height width"], target: Float[Tensor, "*batch channel height width"]
) -> Float[Tensor, "*batch"]:
    """Squared error of a noise prediction, `‖ε_θ − ε‖²` as a mean over elements (what β = 2500 is meant for).

    Args:
        eps: predicted noise.
        target: the noise it is regressed to.

    Returns:
        One error a latent.
    """
    return (eps - target).square().mean(dim=(-3, -2, -1))


def log_ratio(
    error: Float[Tensor, "*batch step"],
    reference_error: Float[Tensor, "*batch step"],
    mask: Bool[Tensor, "*batch step"],
) -> Float[Tensor, "*batch"]:
    """Diffusion surrogate of `log(p_θ / p_ref)`: `−(‖ε_θ − ε‖² − ‖ε_ref − ε‖²)`, a mean over a path's states.

    Args:
        error: the policy's error at each state.
        reference_error: the reference's error at the same states.
        mask: which states exist (broadcast over the batch).

    Returns:
        Log ratio of each path.
    """
    gain = torch.where(mask, reference_error - error, torch.zeros_like(error))
    return gain.sum(-1) / mask.sum(-1)


def min_snr_weights(snr: Float[Tensor, "*batch"], gamma: float) -> Float[Tensor, "*batch"]:
    """ω_T of a noise prediction, `min(SNR, γ) / SNR` (min-SNR-γ, arXiv 2303.09556).

    Unweighted, the errors of nearly clean states are the largest, and what they say is noise: what a prompt decides
    is settled at high noise, where errors are small.

    Args:
        snr: signal-to-noise ratio of each state.
        gamma: γ; 0 means no weighting.

    Returns:
        Weights, 1 where SNR ≤ γ, a state without any signal included.
    """
    return gamma / snr.clamp(min=gamma) if gamma > 0 else torch.ones_like(snr)


def sft(
    error: Float[Tensor, "batch branch step"],
    branch_weights: Float[Tensor, "batch branch"],
    omega: Float[Tensor, "batch step"],
) -> Float[Tensor, " batch"]:
    """SFT sharpening, `Σ_i w_i Σ_T ω_T ‖ε_θ(x_T^i, c, T) − ε‖²` (Eq. 9; one-hot weights are the paper's argmax).

    Args:
        error: error at each state of each branch.
        branch_weights: w, path-integral weights.
        omega: ω_T, weights of the states; 0 where a state does not exist.

    Returns:
        Loss of each prompt.
    """
    return torch.einsum("bk,bi,bki->b", branch_weights, omega, error)


def dpo_margin(
    log_ratio_w: Float[Tensor, " group"],
    log_ratio_l: Float[Tensor, " group"],
    reward_w: Float[Tensor, " group"],
    reward_l: Float[Tensor, " group"],
    beta: float,
    reward_scale: float,
) -> Float[Tensor, " group"]:
    """RLHF sharpening, `−log σ(β Δ − η (R_w − R_l))` with `Δ = log_ratio_w − log_ratio_l` (Eq. 11).

    The gap stands inside the sigmoid, so it decides how strongly a pair pulls.

    Args:
        log_ratio_w: log ratio of the winner.
        log_ratio_l: log ratio of the loser.
        reward_w: path reward of the winner.
        reward_l: path reward of the loser.
        beta: β.
        reward_scale: η, per unit of reward; 0 is plain DPO.

    Returns:
        Loss of each group.
    """
    return -F.logsigmoid(beta * (log_ratio_w - log_ratio_l) - reward_scale * (reward_w - reward_l))


def dpo(
    log_ratio_w: Float[Tensor, " group"], log_ratio_l: Float[Tensor, " group"], beta: float
) -> Float[Tensor, " group"]:
    """Diffusion-DPO, `−log σ(β Δ)`: Eq. 11 without its margin.

    Args:
        log_ratio_w: log ratio of the winner.
        log_ratio_l: log ratio of the loser.
        beta: β.

    Returns:
        Loss of each group.
    """
    return -F.logsigmoid(beta * (log_ratio_w - log_ratio_l))


def rebel(
    log_ratio_w: Float[Tensor, " group"],
    log_ratio_l: Float[Tensor, " group"],
    reward_w: Float[Tensor, " group"],
    reward_l: Float[Tensor, " group"],
    beta: float,
    reward_scale: float,
) -> Float[Tensor, " group"]:
    """REBEL's regression on the gap, `(β Δ − η (R_w − R_l))²` (arXiv 2404.16767, which the paper cites for Eq. 11).

    Args:
        log_ratio_w: log ratio of the winner.
        log_ratio_l: log ratio of the loser.
        reward_w: path reward of the winner.
        reward_l: path reward of the loser.
        beta: β.
        reward_scale: η, per unit of reward.

    Returns:
        Loss of each group.
    """
    return (beta * (log_ratio_w - log_ratio_l) - reward_scale * (reward_w - reward_l)).square()
