"""Options of guidance distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import MethodOptions, described, require
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class GuidanceDistillationOptions(MethodOptions):
    """Options of guidance distillation. The defaults are the setting that worked on the embedded world.

    Attributes:
        teacher_guidance_scale: w, the guidance that is folded into the conditional prediction. `guidance_scale` is what
            the model is used with afterwards: 1.
        timesteps_per_rollout: K, states of each trajectory that are learnt, stratified over the grid.
        snr_gamma: γ of the states' weights ω_t = min(SNR, γ) / SNR (0: all weigh the same).
    """

    teacher_guidance_scale: float = described(
        3.0, "guidance that the model learns to do without", symbol="w", gt=1,
        fix="an unguided prediction is the model's own already, so pass a scale above 1",
    )  # fmt: skip
    timesteps_per_rollout: int = described(
        12, "states of every trajectory that are learnt, stratified over its steps", "timesteps a prompt", "K", ge=1
    )
    snr_gamma: float = described(
        0.0, "weighs states by min(SNR, γ) / SNR in the loss; 0: equally", "signal-to-noise ratio", "ω_t", ge=0
    )

    about: ClassVar[str] = "guidance distillation: the guided prediction in one evaluation (arXiv 2210.03142)"
    training: ClassVar[TrainingOptions] = TrainingOptions(
        updates=50, inner_steps=4, train_batch_size=72, learning_rate=2e-4, lr_scheduler="linear"
    )
    rewarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check each option alone and the combinations that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(
            self.timesteps_per_rollout <= self.rollout_steps, "timesteps_per_rollout",
            f"must be at most rollout_steps ({self.rollout_steps}), the trajectory's length; pass fewer",
        )  # fmt: skip

    @property
    def groups_per_prompt(self) -> int:
        """One group a timestep."""
        return self.timesteps_per_rollout
