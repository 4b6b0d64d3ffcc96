"""Options of SFT sharpening (Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sharpening.options.base import Kind, MethodOptions, described, require
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class SFTOptions(MethodOptions):
    """Options of SFT sharpening; `rollout_steps` is the grid that its branches walk on.

    Attributes:
        branches: n, noises drawn for one image and timestep; 1 is fine-tuning on the sampler's grid.
        branch_steps: m, denoising steps (states) of a branch.
        temperature: λ of the path integral; 0 is the paper's argmax, above it all branches are learned from, by weight.
        timesteps_per_image: K, timesteps at which one image is branched in an update, stratified over the grid.
        target: "initial": regress every state to the branch's ε; "state": to the noise implied by x_T and x_0.
        snr_gamma: γ of the states' weights ω_T = min(SNR, γ) / SNR (0: all weigh the same).
        proportion_empty_prompts: probability of an image to be branched and learned with the empty prompt.
    """

    branches: int = described(
        3, "noises of one image and timestep; 1 has nothing to choose from", "branches", "n", ge=1
    )
    branch_steps: int = described(1, "steps that a branch takes (paper: 3)", "denoising steps", "m", ge=1)
    temperature: float = described(
        0.0, "path-integral temperature; 0 learns from the best branch alone", "reward units", "λ", ge=0
    )
    timesteps_per_image: int = described(
        4, "timesteps at which every image is branched and learnt", "timesteps an image", "K", ge=1
    )
    target: Literal["initial", "state"] = described(
        "initial", "noise a state is regressed to: the branch's, or the one its state implies", symbol="ε"
    )
    snr_gamma: float = described(
        0.0, "weighs states by min(SNR, γ) / SNR in the loss; 0: equally", "signal-to-noise ratio", "ω_T", ge=0
    )
    proportion_empty_prompts: float = described(
        0.0, "probability of learning an image without its prompt", "probability", ge=0, le=1
    )

    about: ClassVar[str] = "SFT trajectory sharpening (arXiv 2502.12146, Algorithm 1)"
    training: ClassVar[TrainingOptions] = TrainingOptions()
    data: ClassVar[Kind] = "images"

    def __post_init__(self) -> None:
        """Check each option alone and the combinations that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        for option in ("timesteps_per_image", "branch_steps"):
            require(
                getattr(self, option) <= self.rollout_steps,
                option,
                f"must be at most rollout_steps ({self.rollout_steps}), the grid's length; pass fewer",
            )

    @property
    def groups_per_prompt(self) -> int:
        """One group a timestep."""
        return self.timesteps_per_image
