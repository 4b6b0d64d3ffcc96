"""SFT sharpening (Algorithm 1): noise an image n times, walk and score the branches, learn from the best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sharpening import losses
from sharpening.branching import Trajectories, branch
from sharpening.data.source import Batch
from sharpening.methods.base import Loss, Seeds
from sharpening.methods.collecting import Stopwatch, precision, score_images, stratified_places
from sharpening.methods.states import StateExperience, check_images, drop_prompts, policy_of, state_errors, told_sizes
from sharpening.options.sft import SFTOptions
from sharpening.path_integral import branch_weights, path_rewards
from sharpening.policies.base import Condition, Policy
from sharpening.rewards.base import ScoreFn
from sharpening.seeds import noise


@dataclass(kw_only=True)
class BranchExperience(StateExperience):
    """Branches that are learned from: the winner alone at λ = 0, else all n.

    Attributes:
        weights: `[G, n']`, path-integral weights w; each group's add up to 1.
    """

    weights: Float[Tensor, "group member"]

    def statistics(self) -> dict[str, Float[Tensor, " group"]]:
        """`reward_gain`, the reward that is learned from (by weight) minus the branches' mean."""
        spread = self.path_rewards - self.path_rewards.mean(-1, keepdim=True)
        chosen = spread.amax(-1) if self.weights.shape[1] == 1 else (self.weights * spread).sum(-1)
        return {"reward_gain": chosen}


class SFTSharpening:
    """Algorithm 1 as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: SFTOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or SFTOptions()

    @torch.no_grad()
    def collect(
        self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds
    ) -> BranchExperience:
        """Encode one task's images, branch each at K timesteps, score every state, keep what is learned from.

        Args:
            policy: the present model.
            reference: not used.
            score: the reward; called once.
            batch: prompts with an image each.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, without a graph; a prompt any of whose images has no score is in `dropped`
            alone. Its version is 0: who knows the weights' version sets it.

        Raises:
            ValueError: if prompts and slots differ in number, the examples have no image, or the reward answers for
                another number of images.
        """  # noqa: DOC502
        del reference
        options, clock, spent = self.options, Stopwatch(policy.device), policy.nfe
        check_images(batch, seeds, count=1)
        with clock("encode"):
            x0 = policy.encode_images(batch.images[:, 0])
            policy = policy_of(policy, x0)
            condition = drop_prompts(policy, policy.encode(batch.prompts), seeds, options.proportion_empty_prompts)
            condition = told_sizes(condition, batch)
        with clock("branch"), precision(options, policy.device):
            trajectories = self._branch(policy, condition, x0, seeds)
        exists = trajectories.mask[:, None, :].expand(trajectories.x_t.shape[:3])
        with clock("decode"), precision(options, policy.device):
            images = policy.decode(trajectories.x0[exists])
        with clock("reward"):
            owner = exists.nonzero()[:, 0].cpu() // options.timesteps_per_image  # prompt of each image
            values, failed = score_images(score, images, batch.prompts, owner)
        rewards = torch.zeros(exists.shape).masked_scatter(exists.cpu(), values)
        experience = self._select(policy, condition, trajectories, x0, rewards, failed, batch, seeds)
        experience.nfe = policy.nfe - spent
        experience.seconds = clock.seconds
        experience.images_scored = len(images)
        return experience

    def loss(self, policy: Policy, experience: BranchExperience) -> Loss:
        """`Σ_i w_i Σ_T ω_T ‖ε_θ(x_T^i, c, T) − ε‖²` (Eq. 9), the error a mean over elements.

        ω_T holds a factor 1 / m_eff, as the path reward does: branches that the grid's end cuts short weigh as much as
        others, and losses compare across m.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics; `error` weighs all states of the branches the same.
        """
        policy = policy_of(policy, experience.x_t)
        error = state_errors(policy, experience)
        states = (experience.mask / experience.mask.sum(-1, keepdim=True)).to(error)
        omega = states * losses.min_snr_weights(policy.snr(experience.timesteps), self.options.snr_gamma).to(error)
        weights = experience.weights.to(error)
        value = losses.sft(error, weights, omega).mean()
        rewards = experience.path_rewards
        metrics = {
            "loss": value.detach(),
            "error": losses.sft(error.detach(), weights, states).mean(),
            "reward": rewards.mean(),
            "reward_gain": experience.statistics()["reward_gain"].mean(),
        }
        if rewards.shape[1] > 1:
            metrics["reward_spread"] = rewards.std(-1).mean()
        return Loss(value, {name: float(number) for name, number in metrics.items()})

    # -- the stages of collect -------------------------------------------------------------------------------------

    def _branch(self, policy: Policy, condition: Condition, x0: Tensor, seeds: Seeds) -> Trajectories:
        """Branches of all K timesteps of all images in one batch of P·K starts, each from its own noise."""
        options, repeats = self.options, self.options.timesteps_per_image
        draws = [
            noise(tuple(x0.shape[1:]), seeds.run_seed, "branch", seeds.update, slot, t, k)
            for slot in seeds.slots
            for t in range(repeats)
            for k in range(options.branches)
        ]
        eps = torch.stack(draws).to(policy.device).unflatten(0, (-1, options.branches))
        return branch(
            policy,
            condition.repeat_interleave(repeats),
            x0.repeat_interleave(repeats, dim=0)[:, None].expand_as(eps),
            stratified_places(seeds, options.rollout_steps, repeats).flatten(),
            eps,
            options.branch_steps,
            policy.timesteps(options.rollout_steps),
            options.guidance_scale,
        )

    def _select(
        self,
        policy: Policy,
        condition: Condition,
        trajectories: Trajectories,
        x0: Tensor,
        rewards: Float[Tensor, "start branch step"],
        failed: dict[int, str],
        batch: Batch,
        seeds: Seeds,
    ) -> BranchExperience:
        """What is learned of each group whose prompt scored; the account is still to be filled."""
        options, repeats = self.options, self.options.timesteps_per_image
        kept = [b for b in range(len(batch)) if b not in failed]
        start = torch.tensor([b * repeats + k for b in kept for k in range(repeats)], dtype=torch.long)
        mask = trajectories.mask.cpu()[start]
        path_reward = path_rewards(rewards[start], mask)
        weights = branch_weights(path_reward, options.temperature)
        chosen = torch.arange(options.branches).expand_as(weights)
        if options.temperature == 0:  # the winner alone: what has no weight need not be kept or evaluated
            chosen = weights.argmax(-1, keepdim=True)
        rows, columns = start[:, None].to(x0.device), chosen.to(x0.device)
        x_t, timesteps = trajectories.x_t[rows, columns], trajectories.timesteps[start.to(x0.device)]
        target = trajectories.eps[rows, columns][:, :, None].expand_as(x_t)
        if options.target == "state":
            clean = x0[rows // repeats][:, :, None].expand_as(x_t)
            t = timesteps[:, None, :].expand(x_t.shape[:3]).flatten()
            target = policy.target_noise(x_t.flatten(0, 2), clean.flatten(0, 2), t).view(x_t.shape)
        return BranchExperience(
            prompts=[batch.prompts[b] for b in kept],
            slots=[seeds.slots[b] for b in kept],
            update=seeds.update,
            version=0,
            condition=condition.index(kept).to("cpu"),
            group_prompt=torch.arange(len(kept)).repeat_interleave(repeats),
            path_rewards=path_reward,
            x_t=x_t.cpu(),
            timesteps=timesteps.cpu(),
            mask=mask,
            target=target.contiguous().cpu(),
            weights=weights.gather(-1, chosen),
            dropped=[(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
        )
