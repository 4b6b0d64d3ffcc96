"""RLHF sharpening (Algorithm 2): generate, branch, score, and learn from each prompt's best and worst branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
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


@dataclass
class _Drawn:
    """A task's images, still to be judged.

    Attributes:
        policy: the present model.
        condition: the encoded prompts.
        prompts: the prompts.
        initial: the noise that each image was drawn from `[P, n, C, H, W]`.
        x0: its clean latents, the same shape.
        seeds: counters of all random numbers.
    """

    policy: Policy
    condition: Condition
    prompts: Sequence[str]
    initial: Float[Tensor, "prompt branch channel height width"]
    x0: Float[Tensor, "prompt branch channel height width"]
    seeds: Seeds


@dataclass
class _Judged:
    """Branches of P·K starts, and which two of each are learnt from.

    Attributes:
        trajectories: branches, all n or the two.
        x0: the clean latents that they start from, a row a prompt.
        columns: places of winner and loser among these branches `[P·K, 2]`.
        path_reward: S of all n `[P·K, n]`; what stands at a failed prompt means nothing.
        pair: places of winner and loser among the n `[P·K, 2]`.
        failed: why a prompt has no reward, by its place in the task.
        images: how many were scored.
    """

    trajectories: Trajectories
    x0: Tensor
    columns: Int[Tensor, "start 2"]
    path_reward: Float[Tensor, "start branch"]
    pair: Int[Tensor, "start 2"]
    failed: dict[int, str]
    images: int


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
        options, clock = self.options, Stopwatch(policy.device)
        check_batch(batch, seeds)
        spent = policy.nfe + reference.nfe
        with clock("generate"):
            condition = policy.encode(batch.prompts)
            with precision(options, policy.device):
                initial, x0 = self._generate(policy, condition, seeds)
        judge = self._by_image if options.selection == "image" else self._by_path
        judged = judge(_Drawn(policy, condition, batch.prompts, initial, x0, seeds), score, clock)
        experience = self._experience(policy, condition, judged, batch.prompts, seeds)
        with clock("reference"):
            experience.reference_error = pair_errors(reference, experience, options.guidance_of_loss).cpu()
        experience.nfe = policy.nfe + reference.nfe - spent
        experience.seconds = clock.seconds
        experience.images_scored = judged.images
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

    def _by_path(self, drawn: _Drawn, score: ScoreFn, clock: Stopwatch) -> _Judged:
        """Branch every image at K timesteps, and pick by the rewards of all states (Eq. 8)."""
        options, policy, prompts = self.options, drawn.policy, drawn.prompts
        repeats = options.timesteps_per_rollout
        with clock("branch"), precision(options, policy.device):
            trajectories = self._branch(drawn, drawn.x0, self._branch_noise(drawn))
        with clock("decode"), precision(options, policy.device):
            exists = trajectories.mask[:, None, :].expand(trajectories.x_t.shape[:3])
            images = policy.decode(trajectories.x0[exists])
        with clock("reward"):
            owner = exists.nonzero()[:, 0].cpu() // repeats  # prompt of each image
            values, failed = score_images(score, images, prompts, owner)
        rewards = torch.zeros(exists.shape).masked_scatter(exists.cpu(), values)
        path_reward = path_rewards(rewards, trajectories.mask.cpu())
        if options.selection == "prompt":  # over all K timesteps: the K short paths are pieces of one
            path_reward = path_reward.unflatten(0, (len(prompts), repeats)).mean(1).repeat_interleave(repeats, dim=0)
        pair = self._pick(path_reward, drawn.seeds)
        return _Judged(trajectories, drawn.x0, pair, path_reward, pair, failed, len(images))

    def _by_image(self, drawn: _Drawn, score: ScoreFn, clock: Stopwatch) -> _Judged:
        """Pick by the rewards of the images themselves, and branch the two that are picked."""
        options, policy, prompts = self.options, drawn.policy, drawn.prompts
        repeats = options.timesteps_per_rollout
        with clock("decode"), precision(options, policy.device):
            images = policy.decode(drawn.x0.flatten(0, 1))
        with clock("reward"):
            owner = torch.arange(len(prompts)).repeat_interleave(options.branches)
            values, failed = score_images(score, images, prompts, owner)
        path_reward = values.unflatten(0, (len(prompts), options.branches)).repeat_interleave(repeats, dim=0)
        pair = self._pick(path_reward, drawn.seeds)
        with clock("branch"), precision(options, policy.device):
            rows, two = torch.arange(len(prompts))[:, None], pair[::repeats]
            rows, two = rows.to(drawn.x0.device), two.to(drawn.x0.device)
            x0 = drawn.x0[rows, two]
            eps = self._branch_noise(drawn).transpose(1, 2)[rows, two].transpose(1, 2)
            trajectories = self._branch(drawn, x0, eps, predict_x0=False)
        columns = torch.tensor([0, 1]).expand(len(pair), 2)
        return _Judged(trajectories, x0, columns, path_reward, pair, failed, len(images))

    def _branch(self, drawn: _Drawn, x0: Tensor, eps: Tensor, predict_x0: bool = True) -> Trajectories:
        """Branches of all K timesteps of all prompts in one batch of P·K starts."""
        options, repeats = self.options, self.options.timesteps_per_rollout
        return branch(
            drawn.policy,
            drawn.condition.repeat_interleave(repeats),
            x0.repeat_interleave(repeats, dim=0),
            stratified_places(drawn.seeds, options.rollout_steps, repeats).flatten(),
            eps.flatten(0, 1),
            options.branch_steps,
            drawn.policy.timesteps(options.rollout_steps),
            options.guidance_scale,
            predict_x0,
        )

    def _branch_noise(self, drawn: _Drawn) -> Float[Tensor, "prompt time branch channel height width"]:
        """The noise ε that takes each branch from x_0 to x_t."""
        options, seeds, initial, shape = self.options, drawn.seeds, drawn.initial, drawn.policy.latent_shape
        if options.branch_noise == "own":
            return initial[:, None].expand(-1, options.timesteps_per_rollout, *initial.shape[1:])
        own_counter = options.branch_noise == "fresh"
        draws = [
            noise(shape, seeds.run_seed, "branch", seeds.update, slot, t, *((k,) if own_counter else ()))
            for slot in seeds.slots
            for t in range(options.timesteps_per_rollout)
            for k in range(options.branches if own_counter else 1)
        ]
        eps = torch.stack(draws).to(drawn.policy.device)
        eps = eps.view(len(seeds.slots), options.timesteps_per_rollout, -1, *shape)
        return eps.expand(-1, -1, options.branches, *shape)

    def _pick(self, path_reward: Float[Tensor, "start branch"], seeds: Seeds) -> Int[Tensor, "start 2"]:
        """Winner and loser of each start; those of a prompt without a score mean nothing."""
        return torch.stack(select(path_reward, self.options.temperature, self._gumbel(seeds)), dim=1)

    def _experience(
        self, policy: Policy, condition: Condition, judged: _Judged, prompts: Sequence[str], seeds: Seeds
    ) -> PairExperience:
        """The pairs of every prompt that scored; reference errors and account are still to be filled."""
        options, repeats = self.options, self.options.timesteps_per_rollout
        trajectories, x0, failed = judged.trajectories, judged.x0, judged.failed
        kept = [b for b in range(len(prompts)) if b not in failed]
        start = torch.tensor([b * repeats + k for b in kept for k in range(repeats)], dtype=torch.long)
        path_reward = judged.path_reward[start]
        rows, columns = start[:, None].to(x0.device), judged.columns[start].to(x0.device)
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
            mask=trajectories.mask.cpu()[start],
            target=target.contiguous().cpu(),
            reference_error=torch.zeros(x_t.shape[:3]),
            reward=path_reward.gather(1, judged.pair[start]),
            path_rewards=path_reward,
            dropped=[(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
        )

    def _gumbel(self, seeds: Seeds) -> Float[Tensor, "start 2 branch"] | None:
        options = self.options
        if options.temperature == 0:
            return None
        apart = options.selection == "timestep"
        draws = [
            generator(seeds.run_seed, "select", seeds.update, slot, k if apart else 0).gumbel(
                size=(2, options.branches)
            )
            for slot in seeds.slots
            for k in range(options.timesteps_per_rollout)
        ]
        return torch.from_numpy(np.stack(draws))
