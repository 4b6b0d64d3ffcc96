"""Options of Diffusion-DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import Kind, MethodOptions, described
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class DPOOptions(MethodOptions):
    """Options of Diffusion-DPO. The defaults are the setting that worked on the embedded world.

    Attributes:
        beta: β, strength of the pull to the reference; errors are per-element means.
        timesteps_per_pair: K, timesteps at which one pair is noised in an update, stratified over all that the model
            was trained at.
        proportion_empty_prompts: probability of a pair to be learned with the empty prompt.
        snr_gamma: γ of the weights ω_t = min(SNR, γ) / SNR of the errors (0: all weigh the same).
    """

    beta: float = described(
        400.0, "strength of the pull to the reference (published for SDXL: 5000)", "1 / mean squared error", "β", gt=0
    )
    timesteps_per_pair: int = described(
        4, "timesteps at which every pair is noised and learnt", "timesteps a pair", "K", ge=1
    )
    proportion_empty_prompts: float = described(
        0.0, "probability of learning a pair without its prompt; 0 as published", "probability", ge=0, le=1
    )
    snr_gamma: float = described(
        1.0, "weighs timesteps by min(SNR, γ) / SNR in the loss; 0: equally, as published", "signal-to-noise ratio",
        "ω_t", ge=0,
    )  # fmt: skip

    about: ClassVar[str] = "Diffusion-DPO on preference pairs (arXiv 2311.12908, Eq. 14)"
    training: ClassVar[TrainingOptions] = TrainingOptions(updates=40, learning_rate=6e-5, lr_warmup_steps=4)
    data: ClassVar[Kind] = "pairs"
    rewarded: ClassVar[bool] = False

    @property
    def groups_per_prompt(self) -> int:
        """One group a timestep."""
        return self.timesteps_per_pair
