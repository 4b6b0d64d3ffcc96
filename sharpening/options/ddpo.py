"""Options of DDPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sharpening.options.base import described
from sharpening.options.stochastic import StochasticOptions
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class DDPOOptions(StochasticOptions):
    """Options of DDPO. Clipping and advantages are the public code's, the other defaults worked on the embedded world.

    Attributes:
        branches: n, samples of one prompt.
        clip_range: the ratio of probabilities is clipped to 1 ± this; small, because log-probabilities are means over
            elements.
        advantage_clip: advantages are clipped to ± this.
        advantage: "prompt": rewards are z-scored over the prompt's samples; "task": over all samples of a rollout task.
    """

    branches: int = described(
        4, "samples of one prompt, whose rewards are compared", "samples", "n", ge=2,
        fix="advantages compare samples, so pass --branches 2 or more",
    )  # fmt: skip
    clip_range: float = described(
        1e-4, "the ratio of a step's probabilities is clipped to 1 ± this", "ratio", "ε", gt=0, lt=1
    )
    advantage_clip: float = described(
        5.0, "advantages are clipped to ± this", "standard deviations of the reward", "A", gt=0
    )
    advantage: Literal["prompt", "task"] = described(
        "prompt", "rewards are z-scored over the samples of their prompt, or over those of the rollout task", symbol="A"
    )

    about: ClassVar[str] = "DDPO: policy gradient over the sampler's steps (arXiv 2305.13301)"
    training: ClassVar[TrainingOptions] = TrainingOptions(
        updates=14, inner_steps=2, learning_rate=1e-4, lr_warmup_steps=2
    )

    @property
    def groups_per_prompt(self) -> int:
        """One group a learnt step of each sample."""
        return self.branches * self.timesteps_per_rollout
