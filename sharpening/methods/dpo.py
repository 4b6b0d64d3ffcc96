"""Diffusion-DPO: raise the likelihood of a preferred image over another's, against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sharpening import losses
from sharpening.data.source import Batch
from sharpening.methods.base import Loss, Seeds
from sharpening.methods.collecting import Stopwatch, stratified_places
from sharpening.methods.states import (
    StateExperience,
    check_images,
    drop_prompts,
    group_noise,
    policy_of,
    state_errors,
    training_timesteps,
)
from sharpening.options.dpo import DPOOptions
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn


@dataclass(kw_only=True)
class ImagePairExperience(StateExperience):
    """Noised image pairs; member 0 is the preferred image, member 1 the other.

    Attributes:
        reference_error: `[G, 2, 1]`, the reference's mean squared error per element.
    """

    reference_error: Float[Tensor, "group 2 1"]


class DiffusionDPO:
    """Diffusion-DPO as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: DPOOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or DPOOptions()

    @torch.no_grad()
    def collect(
        self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds
    ) -> ImagePairExperience:
        """Encode one task's pairs, noise both images of a pair alike at K timesteps, and ask the reference.

        Args:
            policy: encodes prompts and images.
            reference: the model that training started from.
            score: not used: the pairs are ranked already.
            batch: prompts with a preferred and another image each.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, without a graph; no prompt is dropped.

        Raises:
            ValueError: if prompts and slots differ in number, or the examples are no pairs.
        """  # noqa: DOC502
        del score
        options, clock, repeats = self.options, Stopwatch(policy.device), self.options.timesteps_per_pair
        spent = reference.nfe
        check_images(batch, seeds, count=2)
        with clock("encode"):
            x0 = policy.encode_images(batch.images.reshape(-1, *batch.images.shape[2:])).unflatten(0, (-1, 2))
            policy, reference = policy_of(policy, x0), policy_of(reference, x0)
            condition = drop_prompts(policy, policy.encode(batch.prompts), seeds, options.proportion_empty_prompts)
            x0 = x0.repeat_interleave(repeats, dim=0)
            eps = group_noise(x0.shape[2:], seeds, repeats, x0.device)[:, None].expand_as(x0)
            timesteps = stratified_places(seeds, training_timesteps(policy), repeats).flatten()
            t = timesteps.repeat_interleave(2).to(x0.device)
            x_t = policy.add_noise(x0.flatten(0, 1), eps.flatten(0, 1), t).unflatten(0, (-1, 2))
        experience = ImagePairExperience(
            prompts=list(batch.prompts),
            slots=list(seeds.slots),
            update=seeds.update,
            version=0,
            condition=condition.to("cpu"),
            group_prompt=torch.arange(len(batch)).repeat_interleave(repeats),
            path_rewards=torch.zeros(len(timesteps), 0),
            x_t=x_t.cpu()[:, :, None],
            timesteps=timesteps[:, None],
            mask=torch.ones(len(timesteps), 1, dtype=torch.bool),
            target=eps.contiguous().cpu()[:, :, None],
            reference_error=torch.zeros(len(timesteps), 2, 1),
        )
        with clock("reference"):
            experience.reference_error = state_errors(reference, experience).cpu()
        experience.nfe = reference.nfe - spent
        experience.seconds = clock.seconds
        return experience

    def loss(self, policy: Policy, experience: ImagePairExperience) -> Loss:
        """`−log σ(−(β/2) [(e_θ^w − e_θ^l) − (e_ref^w − e_ref^l)])`, errors weighed by ω_t (arXiv 2311.12908, Eq. 14).

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics; `winner_error` is unweighted.
        """
        policy = policy_of(policy, experience.x_t)
        error = state_errors(policy, experience)
        omega = losses.min_snr_weights(policy.snr(experience.timesteps), self.options.snr_gamma).to(error)[:, None]
        mask = experience.mask[:, None].to(error.device)
        reference_error = experience.reference_error.to(error)
        winner, loser = losses.log_ratio(omega * error, omega * reference_error, mask).unbind(1)
        value = losses.dpo(winner, loser, self.options.beta / 2).mean()
        metrics = {
            "loss": value,
            "accuracy": (winner > loser).float().mean(),
            "winner_error": error[:, 0].mean(),
            "log_ratio_winner": winner.mean(),
            "log_ratio_loser": loser.mean(),
        }
        return Loss(value, {name: float(number.detach()) for name, number in metrics.items()})
