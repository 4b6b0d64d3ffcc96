"""Pairs of a preferred and another path: what preference losses learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sharpening import losses
from sharpening.methods.base import Experience
from sharpening.policies.base import Policy


@dataclass(kw_only=True)
class PairExperience(Experience):
    """Winner and loser of G groups, each a path of m states; the pair axis is 0 winner, 1 loser.

    Attributes:
        x_t: `[G, 2, m, C, H, W]`, selected states.
        timesteps: `[G, m]`.
        mask: `[G, m]`, which states exist (branches are cut off at the clean end).
        target: `[G, 2, m, C, H, W]`, the noise a state is regressed to.
        reference_error: `[G, 2, m]`, the reference's mean squared error per element.
        reward: `[G, 2]`, path rewards of winner and loser, in the reward's unit.
    """

    x_t: Float[Tensor, "group 2 step channel height width"]
    timesteps: Int[Tensor, "group step"]
    mask: Bool[Tensor, "group step"]
    target: Float[Tensor, "group 2 step channel height width"]
    reference_error: Float[Tensor, "group 2 step"]
    reward: Float[Tensor, "group 2"]

    def statistics(self) -> dict[str, Float[Tensor, " group"]]:
        """`reward_gap`, the winner's reward minus the loser's."""
        winner, loser = self.reward.unbind(1)
        return {"reward_gap": winner - loser}


def pair_errors(
    policy: Policy, experience: PairExperience, guidance_scale: float = 1.0
) -> Float[Tensor, "group 2 step"]:
    """`‖ε_θ(x_T, c, T) − ε‖²` of winner and loser at each of their states, in one evaluation.

    Args:
        policy: the model; gradients flow into its denoiser if they are enabled.
        experience: selected states, their timesteps, mask, targets and prompts; only states that exist are evaluated.
        guidance_scale: guidance of the prediction; 1 is the conditional prediction alone.

    Returns:
        Mean squared error per element, 0 where a state does not exist; on the policy's device.
    """
    exists = experience.mask[:, None, :].expand(experience.x_t.shape[:3])
    group, member, step = exists.nonzero(as_tuple=True)
    prediction = policy.predict(
        experience.x_t[exists].to(policy.device),
        experience.timesteps[group, step].to(policy.device),
        experience.condition.index(experience.group_prompt[group]).to(policy.device),
        guidance_scale,
    )
    error = losses.mean_squared_error(prediction.eps, experience.target[exists].to(policy.device))
    places = tuple(index.to(policy.device) for index in (group, member, step))
    return torch.zeros(exists.shape, device=policy.device, dtype=error.dtype).index_put(places, error)
