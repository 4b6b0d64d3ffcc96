"""A diffusion model seen as a policy: the one interface that branching, losses and searches are written over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sharpening.policies.condition import Condition
from sharpening.schedule import NoiseSchedule

__all__ = ["Condition", "Policy", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """A denoiser's answer at (x_t, t), in both of its readings (Eq. 5–6).

    Attributes:
        eps: predicted noise.
        x0: predicted clean latent, `x_t = α_t x0 + σ_t eps`.
    """

    eps: Float[Tensor, "batch channel height width"]
    x0: Float[Tensor, "batch channel height width"]


class Policy(Protocol):
    """What a model family's adapter provides.

    Attributes:
        denoiser: the module that is trained.
        schedule: the model's noise levels and grids.
        latent_shape: `(C, H, W)` of a latent.
        nfe: denoiser evaluations so far, calls × images (a prediction costs `prediction_nfe` of them).
        device: where the model is.
    """

    denoiser: nn.Module
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    nfe: int
    device: torch.device

    def shaped(self, height: int, width: int) -> Policy:
        """The same model, for latents of another height and width: what depends on the size follows it."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Embed prompts, each as if it were alone, so that no embedding depends on its batch."""

    def uncondition(self, batch: int) -> Condition:
        """What guidance contrasts a prompt with, `batch` times."""

    def predict(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        condition: Condition,
        guidance_scale: float = 1.0,
    ) -> Prediction:
        """Predict noise and clean latent; guided above a `guidance_scale` of 1."""

    def prediction_nfe(self, guidance_scale: float) -> int:
        """Denoiser evaluations that one prediction costs, as `nfe` counts them."""

    def levels(self, t: Int[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Signal and noise level α_t and σ_t of a latent at t, float64."""

    def add_noise(
        self,
        x0: Float[Tensor, "batch channel height width"],
        eps: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Noise clean latents, `x_t = α_t x0 + σ_t eps`."""

    def step(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        t_prev: Int[Tensor, " batch"],
        prediction: Prediction,
        eta: float = 0.0,
        noise: Float[Tensor, "batch channel height width"] | None = None,
    ) -> Float[Tensor, "batch channel height width"]:
        """One sampler step from t to t_prev, deterministic at η = 0; pure, each row may be at another timestep."""

    def moments(
        self, t: Int[Tensor, " batch"], t_prev: Int[Tensor, " batch"], prediction: Prediction, eta: float
    ) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch 1 1 1"]]:
        """Mean and standard deviation of the step's Gaussian, the policy's action distribution at (x_t, t)."""

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """The sampler's grid, descending."""

    def previous(self, t: Int[Tensor, " batch"], steps: int) -> Int[Tensor, " batch"]:
        """The timestep that follows t when sampling in `steps` steps; below 0 is the clean end."""

    def target_noise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        x0: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """The noise that x_t and x0 imply, `(x_t − α_t x0) / σ_t`."""

    def snr(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Signal-to-noise ratio `α_t² / σ_t²` of a latent at t."""

    def pixels(
        self, latents: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch 3 pixel_height pixel_width"]:
        """Images of latents in [0, 1], with the decoder's graph where gradients are enabled."""

    def decode(self, latents: Float[Tensor, "batch channel height width"]) -> np.ndarray:
        """Images of latents, uint8 `[B, H, W, 3]`."""

    def encode_images(self, images: np.ndarray) -> Float[Tensor, "batch channel height width"]:
        """Clean latents of uint8 images `[B, H, W, 3]`."""

    @property
    def adapted(self) -> bool:
        """Whether LoRA adapters are trained instead of the denoiser's own weights."""

    def add_adapter(self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), seed: int = 0) -> None:
        """Train LoRA adapters from now on; they change nothing yet."""

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training changes; they ask for gradients from now on, and no others do."""

    def trainable_state(self) -> dict[str, Tensor]:
        """A snapshot of the trained weights, on the CPU."""

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Take over a snapshot."""

    def frozen_copy(self) -> Policy:
        """The reference, without gradient: the denoiser with its adapters off, or a copy where it has none."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole pipeline, adapters merged into it, so that it loads without this project."""

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters alone, so that they load without this project."""
