"""Guidance distillation: the conditional prediction learns to be what the reference predicts under guidance.

With its guidance folded into the weights a model is sampled, and sharpened, unguided, at half the evaluations; what
sharpening adds to it then is no guidance learnt a second time (docs/notebook.md). This is the first stage of Meng et
al. (arXiv 2210.03142, Eq. 2) at one guidance scale, on the sampler's own states.
"""

from __future__ import annotations

import torch

from sharpening.data.source import Batch
from sharpening.methods.base import Loss, Seeds, check_batch
from sharpening.methods.collecting import Stopwatch, precision, stratified_places
from sharpening.methods.states import StateExperience, regression
from sharpening.options.guidance_distillation import GuidanceDistillationOptions
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn
from sharpening.seeds import noise


class GuidanceDistillation:
    """Regression to the guided reference as the two hooks of a method.

    Attributes:
        options: the method's options.
    """

    def __init__(self, options: GuidanceDistillationOptions | None = None) -> None:
        """Make the method.

        Args:
            options: None means the defaults.
        """
        self.options = options or GuidanceDistillationOptions()

    @torch.no_grad()
    def collect(self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds) -> StateExperience:
        """Walk the guided reference from noise to image and keep K states of each walk with what it predicted there.

        Args:
            policy: not used; what is learnt does not depend on it.
            reference: the teacher; two evaluations a step.
            score: not used.
            batch: the task's prompts.
            seeds: counters of all random numbers; one slot a prompt.

        Returns:
            The experience, on the CPU, one member and one state a group; no prompt is dropped.

        Raises:
            ValueError: if prompts and slots differ in number.
        """  # noqa: DOC502
        del policy, score
        options, clock, spent = self.options, Stopwatch(reference.device), reference.nfe
        check_batch(batch, seeds)
        grid = reference.timesteps(options.rollout_steps)
        with clock("generate"), precision(options, reference.device):
            condition = reference.encode(batch.prompts)
            draws = [noise(reference.latent_shape, seeds.run_seed, "latent", seeds.update, s, 0) for s in seeds.slots]
            x = torch.stack(draws).to(reference.device)
            states, targets = [], []
            for t in grid:
                rows = t.expand(len(x))
                prediction = reference.predict(x, rows, condition, options.teacher_guidance_scale)
                states.append(x)
                targets.append(prediction.eps)
                x = reference.step(x, rows, reference.previous(rows, options.rollout_steps), prediction)
        places = stratified_places(seeds, options.rollout_steps, options.timesteps_per_rollout)
        prompt = torch.arange(len(batch)).repeat_interleave(options.timesteps_per_rollout)
        x_t, target = (torch.stack(kept).cpu()[places.flatten(), prompt] for kept in (states, targets))
        timesteps = grid.cpu()[places.flatten()]
        return StateExperience(
            prompts=list(batch.prompts),
            slots=list(seeds.slots),
            update=seeds.update,
            version=0,
            condition=condition.to("cpu"),
            group_prompt=prompt,
            path_rewards=torch.zeros(len(prompt), 0),
            x_t=x_t[:, None, None],
            timesteps=timesteps[:, None],
            mask=torch.ones(len(prompt), 1, dtype=torch.bool),
            target=target[:, None, None],
            nfe=reference.nfe - spent,
            seconds=clock.seconds,
        )

    def loss(self, policy: Policy, experience: StateExperience) -> Loss:
        """`ω_t ‖ε_θ(x_t, c, t) − (ε_ref(x_t, ∅, t) + w (ε_ref(x_t, c, t) − ε_ref(x_t, ∅, t)))‖²`, the error a mean.

        Args:
            policy: the model in training.
            experience: at least one group.

        Returns:
            Mean over groups, with its metrics; `error` is unweighted.
        """
        return regression(policy, experience, self.options.snr_gamma)
