"""REBEL (arXiv 2404.16767): regress the log ratio between two samples of a prompt to the gap of their rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sharpening import losses
from sharpening.data.source import Batch
from sharpening.methods.base import Loss, Seeds, check_batch
from sharpening.methods.collecting import Stopwatch, precision, score_images, stratified_places
from sharpening.methods.pairs import PairExperience, pair_errors
from sharpening.options.rebel import RebelOptions
from sharpening.policies.base import Condition, Policy
from sharpening.rewards.base import ScoreFn
from sharpening.sampling import sample
from sharpening.seeds import noise


class Rebel:
    """REBEL for diffusion models, `(Δ − η (r_1 − r_2))²`, as the two hooks of a method.

    Δ is the difference of `log p_θ(x|c) / p_old(x|c)` between two samples x_1, x_2 of one prompt, θ_old being the
    policy that drew them. REBEL is published for language models; the diffusion surrogate of Δ is our derivation:

        log p_θ(x_0) / p_old(x_0) ≈ −Σ_t ω_t/2 · E_ε[‖ε_θ(x_t) − ε‖² − ‖ε_old(x_t) − ε‖²]   (difference of the bounds)
                                  = −(β/2) · E_{t,ε}[e_θ − e_old],   β = (timesteps) · (elements) · ω_t
        Δ ≈ −(β/2) · [(e_θ − e_old)_1 − (e_θ − e_old)_2]   at one (t, ε), the same for both samples

    with errors e that are means over elements. β is an option, because the bound's own weights ω_t are not those that
    diffusion models are trained with. At the first optimiser step after a rollout e_θ = e_old, so Δ = 0 and the
    gradient is `−2η (r_1 − r_2) ∇Δ`; the regression holds a step back from the second on (`inner_steps`).

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: RebelOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or RebelOptions()

    @torch.no_grad()
    def collect(self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds) -> PairExperience:
        """Roll out one task: two samples a prompt, their rewards, and the present policy's errors on both.

        Args:
            policy: the present model, θ_old of the loss.
            reference: the model it started from; not asked.
            score: the reward; called once.
            batch: the task's prompts.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, without a graph, the better sample of each pair first; its `reference_error` is
            θ_old's. A prompt with a sample that has no score is in `dropped` alone.

        Raises:
            ValueError: if prompts and slots differ in number, or the reward answers for another number of images.
        """  # noqa: DOC502
        del reference
        options, clock, prompts = self.options, Stopwatch(policy.device), batch.prompts
        check_batch(batch, seeds)
        spent = policy.nfe
        with clock("generate"):
            condition = policy.encode(prompts)
            with precision(options, policy.device):
                x0 = self._generate(policy, condition, seeds)
        with clock("decode"), precision(options, policy.device):
            images = policy.decode(x0.flatten(0, 1))
        with clock("reward"):
            owner = torch.arange(len(prompts)).repeat_interleave(2)
            values, failed = score_images(score, images, prompts, owner)
        experience = self._pair(policy, condition, x0, values.view(-1, 2), failed, prompts, seeds)
        with clock("reference"):
            experience.reference_error = pair_errors(policy, experience).cpu()
        experience.nfe = policy.nfe - spent
        experience.seconds = clock.seconds
        experience.images_scored = len(images)
        return experience

    def loss(self, policy: Policy, experience: PairExperience) -> Loss:
        """REBEL's squared error over an experience's pairs.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics; `log_ratio_gap` is Δ and `target` is what it is regressed to.
        """
        options = self.options
        error = pair_errors(policy, experience)
        omega = losses.min_snr_weights(policy.snr(experience.timesteps), options.snr_gamma).to(error)[:, None, :]
        mask = experience.mask[:, None, :].to(error.device)
        better, other = losses.log_ratio(omega * error, omega * experience.reference_error.to(error), mask).unbind(1)
        reward_1, reward_2 = experience.reward.to(error).unbind(1)
        strength = options.beta / 2
        value = losses.rebel(better, other, reward_1, reward_2, strength, options.reward_scale).mean()
        metrics = {
            "loss": value,
            "log_ratio_gap": strength * (better - other).mean(),
            "target": options.reward_scale * (reward_1 - reward_2).mean(),
            "accuracy": (better > other).float().mean(),
            "error": error.mean(),
            "reward": experience.path_rewards.mean(),
            "reward_gap": (reward_1 - reward_2).mean(),
        }
        return Loss(value, {name: float(number.detach()) for name, number in metrics.items()})

    # -- the stages of collect -------------------------------------------------------------------------------------

    def _generate(
        self, policy: Policy, condition: Condition, seeds: Seeds
    ) -> Float[Tensor, "prompt 2 channel height width"]:
        draws = [
            noise(policy.latent_shape, seeds.run_seed, "latent", seeds.update, slot, k)
            for slot in seeds.slots
            for k in range(2)
        ]
        rows, options = condition.repeat_interleave(2), self.options
        x0 = sample(policy, rows, torch.stack(draws), options.rollout_steps, options.guidance_scale)
        return x0.unflatten(0, (len(seeds.slots), 2))

    def _pair(
        self,
        policy: Policy,
        condition: Condition,
        x0: Float[Tensor, "prompt 2 channel height width"],
        rewards: Float[Tensor, "prompt 2"],
        failed: dict[int, str],
        prompts: Sequence[str],
        seeds: Seeds,
    ) -> PairExperience:
        """Both samples of every prompt that scored, noised alike at K timesteps; θ_old's errors are to be filled in."""
        repeats = self.options.timesteps_per_rollout
        kept = [b for b in range(len(prompts)) if b not in failed]
        group = torch.arange(len(kept)).repeat_interleave(repeats)
        order = rewards[kept].argsort(dim=1, descending=True, stable=True)
        places = stratified_places(seeds, self.options.rollout_steps, repeats)[kept].flatten()
        timesteps = policy.timesteps(self.options.rollout_steps)[places.to(policy.device)]
        draws = [
            noise(policy.latent_shape, seeds.run_seed, "branch", seeds.update, seeds.slots[b], k)
            for b in kept
            for k in range(repeats)
        ]
        eps = torch.stack(draws) if draws else torch.zeros(0, *policy.latent_shape)
        eps = eps.to(policy.device)[:, None].expand(-1, 2, *policy.latent_shape)
        clean = x0[kept][torch.arange(len(kept))[:, None], order.to(x0.device)][group]  # (G, 2, C, H, W)
        x_t = policy.add_noise(clean.flatten(0, 1), eps.flatten(0, 1), timesteps.repeat_interleave(2)).view(eps.shape)
        return PairExperience(
            prompts=[prompts[b] for b in kept],
            slots=[seeds.slots[b] for b in kept],
            update=seeds.update,
            version=0,
            condition=condition.index(kept).to("cpu"),
            group_prompt=group,
            x_t=x_t[:, :, None].cpu(),
            timesteps=timesteps[:, None].cpu(),
            mask=torch.ones(len(group), 1, dtype=torch.bool),
            target=eps[:, :, None].contiguous().cpu(),
            reference_error=torch.zeros(len(group), 2, 1),
            reward=rewards[kept].gather(1, order)[group],
            path_rewards=rewards[kept][group],
            dropped=[(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
        )
