"""DDPO: clipped policy gradient over the sampler's steps (arXiv 2305.13301, public code kvablack/ddpo-pytorch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.data.source import Batch
from sharpening.methods.base import Experience, Loss, Seeds
from sharpening.methods.collecting import Stopwatch
from sharpening.methods.stochastic import roll_out, step_log_prob
from sharpening.options.ddpo import DDPOOptions
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn


@dataclass(kw_only=True)
class StepExperience(Experience):
    """One step of one sample a group; steps of a sample in a row, samples of a prompt in a row.

    Attributes:
        x_t: `[G, C, H, W]`, states.
        x_prev: `[G, C, H, W]`, actions: where the sampler went from there.
        timesteps: `[G]`.
        log_prob: `[G]`, log-probability of the action under the weights that took it, in nats per element.
        advantage: `[G]`, of the whole sample, in standard deviations of the reward.
    """

    x_t: Float[Tensor, "group channel height width"]
    x_prev: Float[Tensor, "group channel height width"]
    timesteps: Int[Tensor, " group"]
    log_prob: Float[Tensor, " group"]
    advantage: Float[Tensor, " group"]


def advantages(
    rewards: Float[Tensor, "prompt branch"], over: Literal["prompt", "task"], clip: float
) -> Float[Tensor, "prompt branch"]:
    """Rewards as z-scores, `(R − mean) / (std + 1e-6)`, with the deviation of the samples at hand.

    DDPO's code scores a prompt against a buffer of its last 16 rewards, and against the whole batch until it has seen
    16. A buffer would make a rollout depend on all earlier ones, so the two statistics are two settings here.

    Args:
        rewards: reward of each sample, in the reward's unit.
        over: "prompt", a prompt's samples, or "task", all of them.
        clip: results are clipped to ± this.

    Returns:
        Advantages; exactly 0 where all rewards are the same.
    """
    exact = rewards.double()  # in float32 the mean of equal rewards may miss them, and the z-score would blow that up
    dims = (1,) if over == "prompt" else (0, 1)
    centred = exact - exact.mean(dims, keepdim=True)
    deviation = centred.square().mean(dims, keepdim=True).sqrt()
    return (centred / (deviation + 1e-6)).clamp(-clip, clip).to(rewards.dtype)


def clipped_surrogate(
    ratio: Float[Tensor, " group"], advantage: Float[Tensor, " group"], clip_range: float
) -> Float[Tensor, " group"]:
    """PPO's objective as a loss, `max(−A ρ, −A clip(ρ, 1 ± ε))`.

    Args:
        ratio: ρ, probability of the action now by that when it was taken.
        advantage: A.
        clip_range: ε.

    Returns:
        Loss of each group; without gradient where ρ has already moved beyond the range in A's direction.
    """
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


class DDPO:
    """DDPO as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: DDPOOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or DDPOOptions()

    @torch.no_grad()
    def collect(self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds) -> StepExperience:
        """Roll out one task: samples, rewards, advantages, and the steps that will be learnt.

        With `advantage="task"` the result depends on which prompts share the task; all else is a prompt's own.

        Args:
            policy: the present model.
            reference: not needed; DDPO is held back by its clipping alone.
            score: the reward; called once.
            batch: the task's prompts.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, without a graph; a prompt any of whose images has no score is in `dropped`
            alone. Its version is 0: who knows the weights' version sets it.

        Raises:
            ValueError: if prompts and slots differ in number, or the reward answers for another number of images.
        """  # noqa: DOC502
        options, clock, spent = self.options, Stopwatch(policy.device), policy.nfe
        rollout = roll_out(policy, score, batch, seeds, options.branches, options, clock)
        steps = options.timesteps_per_rollout
        advantage = advantages(rollout.rewards, options.advantage, options.advantage_clip)
        experience = StepExperience(
            **rollout.shared,
            group_prompt=torch.arange(len(rollout.rewards)).repeat_interleave(options.groups_per_prompt),
            path_rewards=rollout.rewards.repeat_interleave(options.groups_per_prompt, dim=0),
            x_t=rollout.x_t.flatten(0, 2),
            x_prev=rollout.x_prev.flatten(0, 2),
            timesteps=rollout.timesteps.flatten(),
            log_prob=rollout.log_prob.flatten(),
            advantage=advantage.flatten().repeat_interleave(steps),
        )
        if options.rollout_precision != "fp32":  # rounding would move ρ off 1 by more than its clip range
            with clock("reference"):
                experience.log_prob = self._log_prob(policy, experience).cpu()
        experience.nfe = policy.nfe - spent
        experience.seconds = clock.seconds
        return experience

    def loss(self, policy: Policy, experience: StepExperience) -> Loss:
        """PPO's clipped objective over the experience's steps.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics.
        """
        options = self.options
        log_prob = self._log_prob(policy, experience)
        log_ratio = log_prob - experience.log_prob.to(log_prob)
        ratio, advantage = log_ratio.exp(), experience.advantage.to(log_prob)
        value = clipped_surrogate(ratio, advantage, options.clip_range).mean()
        metrics = {
            "loss": value,
            "ratio": ratio.mean(),
            "clip_share": ((ratio - 1).abs() > options.clip_range).float().mean(),
            "divergence": 0.5 * log_ratio.square().mean(),  # of the new from the old policy, to second order
            "gain": (log_ratio * advantage).mean(),  # above 0 when better samples became likelier
            "reward": experience.path_rewards.mean(),
            "reward_spread": experience.path_rewards.std(-1).mean(),
        }
        return Loss(value, {name: float(number.detach()) for name, number in metrics.items()})

    def _log_prob(self, policy: Policy, experience: StepExperience) -> Float[Tensor, " group"]:
        condition = experience.condition.index(experience.group_prompt)
        return step_log_prob(policy, condition, experience.x_t, experience.x_prev, experience.timesteps, self.options)
