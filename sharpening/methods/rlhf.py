"""RLHF sharpening (Algorithm 2): generate, branch, score, and learn from each prompt's best and worst branch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sharpening import losses
from sharpening.branching import Trajectories, branch
from sharpening.data.source import Batch
from sharpening.methods.base import Loss, Seeds, check_batch
from sharpening.methods.collecting import Stopwatch, precision, score_images, stratified_places
from sharpening.methods.pairs import PairExperience, pair_errors
from sharpening.options import SharpeningOptions
from sharpening.path_integral import path_rewards, select
from sharpening.policies.base import Condition, Policy
from sharpening.rewards.base import ScoreFn
from sharpening.sampling import sample
from sharpening.seeds import generator, noise


class RLHFSharpening:
    """Algorithm 2 as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: SharpeningOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or SharpeningOptions()

    @torch.no_grad()
    def collect(self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds) -> PairExperience:
        """Roll out one task: x_0, branches, scores, winner and loser, and the reference's errors on those two.

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
        """
        options, clock, prompts = self.options, Stopwatch(policy.device), batch.prompts
        check_batch(batch, seeds)
        spent = policy.nfe + reference.nfe
        with clock("generate"):
            condition = policy.encode(prompts)
            with precision(options, policy.device):
                initial, x0 = self._generate(policy, condition, seeds)
        with clock("branch"), precision(options, policy.device):
            trajectories = self._branch(policy, condition, initial, x0, seeds)
        with clock("decode"), precision(options, policy.device):
            exists = trajectories.mask[:, None, :].expand(trajectories.x_t.shape[:3])
            images = policy.decode(trajectories.x0[exists])
        with clock("reward"):
            owner = exists.nonzero()[:, 0].cpu() // options.timesteps_per_rollout  # prompt of each image
            values, failed = score_images(score, images, prompts, owner)
        rewards = torch.zeros(exists.shape).masked_scatter(exists.cpu(), values)
        experience = self._select(policy, condition, trajectories, x0, rewards, failed, prompts, seeds)
        with clock("reference"):
            experience.reference_error = pair_errors(reference, experience, options.guidance_of_loss).cpu()
        experience.nfe = policy.nfe + reference.nfe - spent
        experience.seconds = clock.seconds
        experience.images_scored = len(images)
        return experience

    def loss(self, policy: Policy, experience: PairExperience) -> Loss:
        """The chosen preference loss over an experience's pairs (Eq. 11 or a relative).

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics.
        """
        options = self.options
        error = pair_errors(policy, experience, options.guidance_of_loss)
        omega = losses.min_snr_weights(policy.snr(experience.timesteps), options.snr_gamma).to(error)[:, None, :]
        error, reference_error = omega * error, omega * experience.reference_error.to(error)
        mask = experience.mask[:, None, :].to(error.device)
        winner, loser = losses.log_ratio(error, reference_error, mask).unbind(1)
        reward_w, reward_l = experience.reward.to(error).unbind(1)
        if options.loss == "dpo":
            loss = losses.dpo(winner, loser, options.beta)
        else:
            formula = {"dpo_margin": losses.dpo_margin, "rebel": losses.rebel}[options.loss]
            loss = formula(winner, loser, reward_w, reward_l, options.beta, options.reward_scale)
        # Eq. 9 on the winner: keeps its likelihood up where the pair alone would only push the loser's down.
        states = mask[:, 0] / mask[:, 0].sum(-1, keepdim=True)
        anchor = losses.sft(error[:, :1], torch.ones_like(error[:, :1, 0]), states)
        value = (loss + options.winner_weight * anchor).mean()
        metrics = {
            "loss": value,
            "accuracy": (winner > loser).float().mean(),
            "reward_gap": (reward_w - reward_l).mean(),
            "winner_error": anchor.mean(),
            "log_ratio_winner": winner.mean(),
            "log_ratio_loser": loser.mean(),
            "reward": experience.path_rewards.mean(),
            "reward_spread": experience.path_rewards.std(-1).mean(),
        }
        return Loss(value, {name: float(number.detach()) for name, number in metrics.items()})

    # -- the stages of collect -------------------------------------------------------------------------------------

    def _generate(self, policy: Policy, condition: Condition, seeds: Seeds) -> tuple[Tensor, Tensor]:
        """Initial noise and x_0 of each branch, both [P, n, C, H, W]; with one latent a prompt, all branches see it."""
        options, latents = self.options, self.options.latents
        initial = torch.stack(
            [
                noise(policy.latent_shape, seeds.run_seed, "latent", seeds.update, slot, k)
                for slot in seeds.slots
                for k in range(latents)
            ]
        ).to(policy.device)
        rows = condition.repeat_interleave(latents)
        x0 = sample(policy, rows, initial, options.rollout_steps, options.guidance_scale)
        shape = (len(seeds.slots), latents)
        repeats = options.branches // latents
        return tuple(x.unflatten(0, shape).repeat_interleave(repeats, dim=1) for x in (initial, x0))

    def _branch(self, policy: Policy, condition: Condition, initial: Tensor, x0: Tensor, seeds: Seeds) -> Trajectories:
        """Branches of all K timesteps of all prompts in one batch of P·K starts."""
        options, repeats = self.options, self.options.timesteps_per_rollout
        return branch(
            policy,
            condition.repeat_interleave(repeats),
            x0.repeat_interleave(repeats, dim=0),
            stratified_places(seeds, options.rollout_steps, repeats).flatten(),
            self._branch_noise(policy, initial, seeds).flatten(0, 1),
            options.branch_steps,
            policy.timesteps(options.rollout_steps),
            options.guidance_scale,
        )

    def _branch_noise(
        self, policy: Policy, initial: Tensor, seeds: Seeds
    ) -> Float[Tensor, "prompt time branch channel height width"]:
        """The noise ε that takes each branch from x_0 to x_t."""
        options, shape = self.options, policy.latent_shape
        if options.branch_noise == "own":
            return initial[:, None].expand(-1, options.timesteps_per_rollout, *initial.shape[1:])
        own_counter = options.branch_noise == "fresh"
        draws = [
            noise(shape, seeds.run_seed, "branch", seeds.update, slot, t, *((k,) if own_counter else ()))
            for slot in seeds.slots
            for t in range(options.timesteps_per_rollout)
            for k in range(options.branches if own_counter else 1)
        ]
        eps = torch.stack(draws).to(policy.device)
        eps = eps.view(len(seeds.slots), options.timesteps_per_rollout, -1, *shape)
        return eps.expand(-1, -1, options.branches, *shape)

    def _select(
        self,
        policy: Policy,
        condition: Condition,
        trajectories: Trajectories,
        x0: Tensor,
        rewards: Float[Tensor, "start branch step"],
        failed: dict[int, str],
        prompts: Sequence[str],
        seeds: Seeds,
    ) -> PairExperience:
        """Winner and loser of every group whose prompt scored; reference errors and account are still to be filled."""
        options, repeats = self.options, self.options.timesteps_per_rollout
        kept = [b for b in range(len(prompts)) if b not in failed]
        start = torch.tensor([b * repeats + k for b in kept for k in range(repeats)], dtype=torch.long)
        rewards, mask = rewards[start], trajectories.mask.cpu()[start]
        path_reward = path_rewards(rewards, mask)
        if options.selection == "prompt":  # Eq. 8 over all K timesteps: the K short paths are pieces of one
            path_reward = path_reward.unflatten(0, (len(kept), repeats)).mean(1).repeat_interleave(repeats, dim=0)
        pair = torch.stack(select(path_reward, options.temperature, self._gumbel(seeds, kept)), dim=1)  # (G, 2)
        rows, columns = start[:, None].to(x0.device), pair.to(x0.device)
        x_t, timesteps = trajectories.x_t[rows, columns], trajectories.timesteps[start.to(x0.device)]
        target = trajectories.eps[rows, columns][:, :, None].expand_as(x_t)
        if options.target == "state":
            clean = x0[rows // repeats, columns][:, :, None].expand_as(x_t)
            t = timesteps[:, None, :].expand(x_t.shape[:3]).flatten()
            target = policy.target_noise(x_t.flatten(0, 2), clean.flatten(0, 2), t).view(x_t.shape)
        return PairExperience(
            prompts=[prompts[b] for b in kept],
            slots=[seeds.slots[b] for b in kept],
            update=seeds.update,
            version=0,
            condition=condition.index(kept).to("cpu"),
            group_prompt=torch.arange(len(kept)).repeat_interleave(repeats),
            x_t=x_t.cpu(),
            timesteps=timesteps.cpu(),
            mask=mask,
            target=target.contiguous().cpu(),
            reference_error=torch.zeros(x_t.shape[:3]),
            reward=path_reward.gather(1, pair),
            path_rewards=path_reward,
            dropped=[(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
        )

    def _gumbel(self, seeds: Seeds, kept: Sequence[int]) -> Float[Tensor, "group 2 branch"] | None:
        options = self.options
        if options.temperature == 0:
            return None
        together = options.selection == "prompt"
        draws = [
            generator(seeds.run_seed, "select", seeds.update, seeds.slots[b], 0 if together else k).gumbel(
                size=(2, options.branches)
            )
            for b in kept
            for k in range(options.timesteps_per_rollout)
        ]
        return torch.from_numpy(np.stack(draws)) if draws else torch.zeros(0, 2, options.branches)
