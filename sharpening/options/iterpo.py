"""Options of IterPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import MethodOptions, described
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class IterPOOptions(MethodOptions):
    """Options of IterPO. The defaults are the setting that worked best on the embedded world.

    Attributes:
        reward_models: the differentiable reward models: "embedded", or the import path `module:class` of others.
        satisfied: the reward from which on a model asks for nothing more, the 2 of `relu(2 − r_k)`.
        loss_scale: λ.
        free_share: share of the sampler's grid that is always walked without gradient; the step with gradient is drawn
            from the rest (published: steps 30…39 of 40).
        outer_rounds: times the reward models are fixed and the policy is tuned on them; between two rounds they are
            retrained with images of the tuned policy.
        round_prompts: prompts whose images extend the preference data between two rounds.
        round_samples: images of each of those prompts; the best and the worst by the run's reward become a pair.
        round_steps: optimiser steps of each retraining.
    """

    reward_models: str = described(
        "embedded", "differentiable reward models: embedded, or module:class of others", symbol="r_k"
    )
    satisfied: float = described(2.0, "reward from which on a model asks for nothing more", "reward units")
    loss_scale: float = described(1e-3, "scale of the loss", "1 / reward unit", "λ", gt=0)
    free_share: float = described(
        0.75, "share of the grid walked without gradient before the step with it", "share of the steps", ge=0, lt=1
    )
    outer_rounds: int = described(3, "rounds of tuning the policy, with retrained reward models", "rounds", ge=1)
    round_prompts: int = described(24, "prompts that extend the preference data between rounds", "prompts", ge=1)
    round_samples: int = described(
        4, "images of each of those prompts, ranked by the reward", "images a prompt", ge=2,
        fix="a pair needs two images, so pass --round_samples 2 or more",
    )  # fmt: skip
    round_steps: int = described(50, "optimiser steps that retrain the reward models", "optimiser steps", ge=1)

    about: ClassVar[str] = "IterPO, reward feedback through the last steps' clean estimate (arXiv 2410.07171)"
    training: ClassVar[TrainingOptions] = TrainingOptions(updates=36, learning_rate=6e-5, train_batch_size=24)
