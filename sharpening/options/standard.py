"""Options of standard fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import Kind, MethodOptions, described
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class StandardOptions(MethodOptions):
    """Options of standard fine-tuning.

    Attributes:
        timesteps_per_image: K, timesteps at which one image is noised in an update, stratified over all that the model
            was trained at.
        proportion_empty_prompts: probability of an image to be learned with the empty prompt.
        snr_gamma: γ of the weights ω_t = min(SNR, γ) / SNR inside the loss (0: all weigh the same).
    """

    timesteps_per_image: int = described(
        4, "timesteps at which every image is noised and learnt", "timesteps an image", "K", ge=1
    )
    proportion_empty_prompts: float = described(
        0.1, "probability of learning an image without its prompt, which is what guidance needs", "probability",
        ge=0, le=1,
    )  # fmt: skip
    snr_gamma: float = described(
        0.0, "weighs timesteps by min(SNR, γ) / SNR in the loss; 0: equally, as is usual", "signal-to-noise ratio",
        "ω_t", ge=0,
    )  # fmt: skip

    about: ClassVar[str] = "standard fine-tuning, the noise regression of DDPM (arXiv 2006.11239, Eq. 14) on images"
    training: ClassVar[TrainingOptions] = TrainingOptions(updates=80, learning_rate=2e-4, lr_warmup_steps=4)
    data: ClassVar[Kind] = "images"
    rewarded: ClassVar[bool] = False

    @property
    def groups_per_prompt(self) -> int:
        """One group a timestep."""
        return self.timesteps_per_image
