"""Standard fine-tuning: regress the noise of given images at timesteps drawn over all training timesteps."""

from __future__ import annotations

import torch

from sharpening.data.source import Batch
from sharpening.methods.base import Loss, Seeds
from sharpening.methods.collecting import Stopwatch, stratified_places
from sharpening.methods.states import (
    StateExperience,
    check_images,
    drop_prompts,
    group_noise,
    policy_of,
    regression,
    told_sizes,
    training_timesteps,
)
from sharpening.options.standard import StandardOptions
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn


class StandardFineTuning:
    """Noise regression on images and captions as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: StandardOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or StandardOptions()

    @torch.no_grad()
    def collect(self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds) -> StateExperience:
        """Encode one task's images and noise each at K timesteps; the denoiser is not evaluated.

        Args:
            policy: encodes prompts and images.
            reference: not used.
            score: not used.
            batch: prompts with an image each.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, one member and one state a group; no prompt is dropped.

        Raises:
            ValueError: if prompts and slots differ in number, or the examples have no image.
        """  # noqa: DOC502
        del reference, score
        options, clock, repeats = self.options, Stopwatch(policy.device), self.options.timesteps_per_image
        check_images(batch, seeds, count=1)
        with clock("encode"):
            x0 = policy.encode_images(batch.images[:, 0]).repeat_interleave(repeats, dim=0)
            policy = policy_of(policy, x0)
            condition = drop_prompts(policy, policy.encode(batch.prompts), seeds, options.proportion_empty_prompts)
            condition = told_sizes(condition, batch)
            eps = group_noise(x0.shape[1:], seeds, repeats, x0.device)
            timesteps = stratified_places(seeds, training_timesteps(policy), repeats).flatten()
            x_t = policy.add_noise(x0, eps, timesteps.to(x0.device))
        return StateExperience(
            prompts=list(batch.prompts),
            slots=list(seeds.slots),
            update=seeds.update,
            version=0,
            condition=condition.to("cpu"),
            group_prompt=torch.arange(len(batch)).repeat_interleave(repeats),
            path_rewards=torch.zeros(len(timesteps), 0),
            x_t=x_t.cpu()[:, None, None],
            timesteps=timesteps[:, None],
            mask=torch.ones(len(timesteps), 1, dtype=torch.bool),
            target=eps.cpu()[:, None, None],
            seconds=clock.seconds,
        )

    def loss(self, policy: Policy, experience: StateExperience) -> Loss:
        """`ω_t ‖ε_θ(x_t, c, t) − ε‖²` (DDPM's Eq. 14 at ω_t = 1), the error a mean over elements.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics; `error` is unweighted.
        """
        return regression(policy, experience, self.options.snr_gamma)
