"""Rewards of states → rewards of paths → weights, winner and loser of a prompt's branches."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def path_rewards(
    rewards: Float[Tensor, "batch branch step"], mask: Bool[Tensor, "batch step"]
) -> Float[Tensor, "batch branch"]:
    """Path reward S_i of each branch (Eq. 8), as the mean over its states: the same argmax, comparable across m.

    Args:
        rewards: reward of each state, in the reward's unit; what stands at states that do not exist is not read.
        mask: which states exist.

    Returns:
        Path rewards, in the reward's unit.
    """
    exists = mask[:, None, :]
    total = torch.where(exists, rewards, torch.zeros_like(rewards)).sum(-1)
    return total / exists.sum(-1)


def branch_weights(path_reward: Float[Tensor, "batch branch"], temperature: float) -> Float[Tensor, "batch branch"]:
    """Path-integral weights `softmax(S / λ)` of a prompt's branches; λ → 0 is the paper's argmax.

    Args:
        path_reward: S.
        temperature: λ, in the reward's unit; 0 puts all weight on the best branch.

    Returns:
        Weights that add up to 1 for each prompt.
    """
    if temperature == 0:
        best = path_reward.argmax(-1, keepdim=True)
        return torch.zeros_like(path_reward).scatter(-1, best, 1.0)
    return torch.softmax(path_reward / temperature, dim=-1)


def select(
    path_reward: Float[Tensor, "batch branch"],
    temperature: float = 0.0,
    gumbel: Float[Tensor, "batch 2 branch"] | None = None,
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Winner and loser of each prompt (Algorithm 2).

    At λ = 0 they are argmax and argmin. Above, the winner is drawn from `softmax(S / λ)` and the loser from
    `softmax(−S / λ)` over the other branches (Gumbel-max), so that only two paths are learned from whatever n is.

    Args:
        path_reward: S.
        temperature: λ, in the reward's unit.
        gumbel: standard Gumbel noise for winner (0) and loser (1); needed for λ > 0.

    Returns:
        Branch number of the winner and of the loser; never the same.

    Raises:
        ValueError: if there are fewer than two branches, or λ > 0 comes without noise.
    """
    if path_reward.shape[-1] < 2:
        raise ValueError("a winner and a loser need at least two branches")
    best, worst = path_reward.double(), -path_reward.double()
    if temperature > 0:
        if gumbel is None:
            raise ValueError("a temperature above 0 needs Gumbel noise")
        best = best / temperature + gumbel[:, 0].double()
        worst = worst / temperature + gumbel[:, 1].double()
    winner = best.argmax(-1)
    # The winner is left out, so that equal rewards do not make a branch its own opponent.
    loser = worst.scatter(-1, winner[:, None], -torch.inf).argmax(-1)
    return winner, loser
