"""D3PO: a preference between two samples, learnt at each of their steps (arXiv 2311.13231, public code yk7333/d3po)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.data.source import Batch
from sharpening.methods.base import Experience, Loss, Seeds
from sharpening.methods.collecting import Stopwatch
from sharpening.methods.stochastic import roll_out, step_log_prob
from sharpening.options.d3po import D3POOptions
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn


@dataclass(kw_only=True)
class StepPairExperience(Experience):
    """One step of both samples of a prompt a group, at the same timestep.

    Attributes:
        x_t: `[G, 2, C, H, W]`, states of the first and the second sample.
        x_prev: `[G, 2, C, H, W]`, actions: where the sampler went from there.
        timesteps: `[G]`.
        reference_log_prob: `[G, 2]`, log-probability of the actions under the reference, in nats per element.
        preference: `[G, 2]`, h: 1 for the preferred sample, −1 for the other, 0 for both on a tie.
    """

    x_t: Float[Tensor, "group 2 channel height width"]
    x_prev: Float[Tensor, "group 2 channel height width"]
    timesteps: Int[Tensor, " group"]
    reference_log_prob: Float[Tensor, "group 2"]
    preference: Float[Tensor, "group 2"]

    def statistics(self) -> dict[str, Float[Tensor, " group"]]:
        """`reward_gap`, the preferred sample's reward minus the other's."""
        first, second = self.path_rewards.unbind(1)
        return {"reward_gap": (first - second).abs()}


def preferences(rewards: Float[Tensor, "prompt 2"]) -> Float[Tensor, "prompt 2"]:
    """Signs h of two samples by their rewards: (1, −1), (−1, 1), or (0, 0) on a tie.

    Args:
        rewards: rewards of both samples.

    Returns:
        h.
    """
    first = torch.sign(rewards[:, 0] - rewards[:, 1])
    return torch.stack([first, -first], dim=1)


def step_preference(
    log_ratio: Float[Tensor, "group 2"], preference: Float[Tensor, "group 2"], beta: float, clip_range: float
) -> Float[Tensor, " group"]:
    """`−log σ(β h_0 log clip(ρ_0, 1 ± ε) + β h_1 log clip(ρ_1, 1 ± ε))`.

    The ratio is clipped through its logarithm, which is the same and spares ratios near 1 the rounding of exp and log.

    Args:
        log_ratio: log ρ, to the reference, of both samples.
        preference: h.
        beta: β.
        clip_range: ε.

    Returns:
        Loss of each group; without gradient from a sample whose ratio is beyond the range, and none on a tie.
    """
    clipped = log_ratio.clamp(math.log1p(-clip_range), math.log1p(clip_range))
    return -F.logsigmoid(beta * (preference * clipped).sum(1))


class D3PO:
    """D3PO as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: D3POOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or D3POOptions()

    @torch.no_grad()
    def collect(
        self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds
    ) -> StepPairExperience:
        """Roll out one task: two samples of each prompt from one initial latent, as the public code draws them.

        Args:
            policy: the present model.
            reference: the model it started from.
            score: the reward; called once.
            batch: the task's prompts.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, without a graph; a prompt any of whose images has no score is in `dropped`
            alone. Its version is 0: who knows the weights' version sets it.

        Raises:
            ValueError: if prompts and slots differ in number, or the reward answers for another number of images.
        """  # noqa: DOC502
        clock, spent = Stopwatch(policy.device), policy.nfe + reference.nfe
        rollout = roll_out(policy, score, batch, seeds, 2, self.options, clock, same_start=True)
        steps = self.options.timesteps_per_rollout
        x_t, x_prev = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (rollout.x_t, rollout.x_prev))
        experience = StepPairExperience(
            **rollout.shared,
            group_prompt=torch.arange(len(rollout.rewards)).repeat_interleave(steps),
            path_rewards=rollout.rewards.repeat_interleave(steps, dim=0),
            x_t=x_t,
            x_prev=x_prev,
            timesteps=rollout.timesteps[:, 0].flatten(),
            reference_log_prob=torch.zeros(x_t.shape[:2]),
            preference=preferences(rollout.rewards).repeat_interleave(steps, dim=0),
        )
        with clock("reference"):
            experience.reference_log_prob = self._log_prob(reference, experience).cpu()
        experience.nfe = policy.nfe + reference.nfe - spent
        experience.seconds = clock.seconds
        return experience

    def loss(self, policy: Policy, experience: StepPairExperience) -> Loss:
        """The preference loss at each step of the pairs.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics.
        """
        options = self.options
        log_prob = self._log_prob(policy, experience)
        log_ratio = log_prob - experience.reference_log_prob.to(log_prob)
        preference = experience.preference.to(log_prob)
        value = step_preference(log_ratio, preference, options.beta, options.clip_range).mean()
        gap = (preference * log_ratio).sum(1)
        metrics = {
            "loss": value,
            "accuracy": (gap > 0).float().mean(),
            "log_ratio_gap": gap.mean(),
            "log_ratio": log_ratio.mean(),
            "clip_share": ((log_ratio.exp() - 1).abs() > options.clip_range).float().mean(),
            "tie_share": (preference[:, 0] == 0).float().mean(),
            "reward_gap": experience.statistics()["reward_gap"].mean(),
            "reward": experience.path_rewards.mean(),
        }
        return Loss(value, {name: float(number.detach()) for name, number in metrics.items()})

    def _log_prob(self, policy: Policy, experience: StepPairExperience) -> Float[Tensor, "group 2"]:
        """Both samples in one evaluation."""
        return step_log_prob(
            policy,
            experience.condition.index(experience.group_prompt.repeat_interleave(2)),
            experience.x_t.flatten(0, 1),
            experience.x_prev.flatten(0, 1),
            experience.timesteps.repeat_interleave(2),
            self.options,
        ).unflatten(0, (-1, 2))
