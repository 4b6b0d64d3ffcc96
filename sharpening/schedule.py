"""Noise levels α_t, σ_t, timestep grids, and one sampler step as a pure function.

Forward process: `x_t = α_t x_0 + σ_t ε`. Here is the schedule with `α_t² + σ_t² = 1`, where diffusers' `alphas_cumprod`
is α_t²; the one with `α_t + σ_t = 1` is `sharpening.flow_schedule.FlowSchedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


class NoiseSchedule(Protocol):
    """What a policy asks of its model's noise schedule.

    Time is an integer t: 0 is the least noisy, `len(schedule) - 1` the noisiest, and below 0 is the clean end.

    Attributes:
        prediction_type: what the denoiser's output means, as in diffusers.
        clip_range: predicted clean latents are clipped to ± this; None leaves them.
        variance_preserving: whether `α_t² + σ_t² = 1`.
    """

    @property
    def prediction_type(self) -> str:
        """What the denoiser's output means, as in diffusers."""

    @property
    def clip_range(self) -> float | None:
        """Predicted clean latents are clipped to ± this; None leaves them."""

    @property
    def variance_preserving(self) -> bool:
        """Whether `α_t² + σ_t² = 1`."""

    def __len__(self) -> int:
        """How many timesteps there are."""

    def alpha(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Signal level α_t, float64."""

    def sigma(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Noise level σ_t, float64."""

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """The sampler's grid, descending."""

    def previous(self, t: Int[Tensor, "*batch"], steps: int) -> Int[Tensor, "*batch"]:
        """The timestep a sampler of that many steps goes to from t."""

    def model_time(self, t: Int[Tensor, "*batch"]) -> Tensor:
        """Time as the denoiser is told it."""


def eps_and_x0(
    output: Float[Tensor, "*shape"],
    x_t: Float[Tensor, "*shape"],
    alpha_t: Float[Tensor, "*#shape"],
    sigma_t: Float[Tensor, "*#shape"],
    prediction_type: str,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Both readings of a denoiser's output (Eq. 5–6; DDIM, arXiv 2010.02502, Eq. 9; v: arXiv 2202.00512, appendix D).

    A flow's velocity is `ε − x_0` at `α_t + σ_t = 1` (docs/flow-matching.md), another than the "v" of diffusion.

    Args:
        output: what the network returned.
        x_t: noisy latents it saw.
        alpha_t: signal level, broadcast over x_t.
        sigma_t: noise level, broadcast over x_t.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction", as in diffusers.

    Returns:
        Predicted noise and predicted clean latent.

    Raises:
        ValueError: if the prediction type is another one.
    """
    if prediction_type == "epsilon":
        return output, (x_t - sigma_t * output) / alpha_t
    if prediction_type == "v_prediction":
        return alpha_t * output + sigma_t * x_t, alpha_t * x_t - sigma_t * output
    if prediction_type == "sample":
        return (x_t - alpha_t * output) / sigma_t, output
    if prediction_type == "flow_prediction":
        return x_t + alpha_t * output, x_t - sigma_t * output
    raise ValueError(f"prediction_type {prediction_type!r} is not epsilon, v_prediction, sample or flow_prediction")


def ddim_moments(
    x0: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    alpha_t: Float[Tensor, "*#shape"],
    sigma_t: Float[Tensor, "*#shape"],
    alpha_prev: Float[Tensor, "*#shape"],
    sigma_prev: Float[Tensor, "*#shape"],
    eta: float,
    variance_preserving: bool = True,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*#shape"]]:
    """Mean and standard deviation of a DDIM step's Gaussian (arXiv 2010.02502, Eq. 12 with the σ_t(η) of Eq. 16).

    At η = 1 the deviation is that of the posterior `q(x_prev | x_t, x_0)`, and at any η x_prev has the noise level
    σ_prev; neither needs `α² + σ² = 1` (docs/flow-matching.md).

    Args:
        x0: predicted clean latent.
        eps: predicted noise; x_t enters only through x0 and eps.
        alpha_t: signal level at t.
        sigma_t: noise level at t.
        alpha_prev: signal level after the step.
        sigma_prev: noise level after the step.
        eta: η, share of DDPM's noise that is added; 0 is deterministic.
        variance_preserving: whether `α² + σ² = 1`.

    Returns:
        The mean, and the deviation (0 where η or the noise level after the step is 0).
    """
    # Variance that the forward process adds from x_prev to x_t. The two are equal where α² + σ² = 1; diffusers' DDIM
    # computes it in the first way, and the same digits are wanted.
    share = alpha_t / alpha_prev
    added = 1 - share**2 if variance_preserving else sigma_t**2 - (share * sigma_prev) ** 2
    deviation = eta * (sigma_prev / sigma_t) * added.clamp(min=0).sqrt()
    direction = (sigma_prev**2 - deviation**2).clamp(min=0).sqrt()
    return alpha_prev * x0 + direction * eps, deviation


def ddim_step(
    x0: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    alpha_t: Float[Tensor, "*#shape"],
    sigma_t: Float[Tensor, "*#shape"],
    alpha_prev: Float[Tensor, "*#shape"],
    sigma_prev: Float[Tensor, "*#shape"],
    eta: float = 0.0,
    noise: Float[Tensor, "*shape"] | None = None,
    variance_preserving: bool = True,
) -> Float[Tensor, "*shape"]:
    """One step of DDIM; with a flow's levels and η = 0 it is Euler's step (docs/flow-matching.md).

    Args:
        x0: predicted clean latent.
        eps: predicted noise.
        alpha_t: signal level at t.
        sigma_t: noise level at t.
        alpha_prev: signal level after the step.
        sigma_prev: noise level after the step.
        eta: η, share of DDPM's noise that is added; 0 is deterministic.
        noise: standard normal, needed for η > 0.
        variance_preserving: whether `α² + σ² = 1`.

    Returns:
        x_prev.

    Raises:
        ValueError: if η > 0 comes without noise.
    """
    if eta == 0:
        return alpha_prev * x0 + sigma_prev * eps
    if noise is None:
        raise ValueError("a ddim_step with eta above 0 needs noise")
    mean, deviation = ddim_moments(x0, eps, alpha_t, sigma_t, alpha_prev, sigma_prev, eta, variance_preserving)
    return mean + deviation * noise


def ddim_scheduler(config: Mapping[str, Any]) -> DDIMScheduler:
    """Make the DDIM scheduler of a scheduler configuration of any class.

    Args:
        config: a diffusers scheduler's configuration.

    Returns:
        The scheduler. Clean latents are clipped only where the configuration says so: DDIMScheduler's own default, made
        for pixels, would clip them to ±1.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config({"clip_sample": False, **config})


@dataclass(frozen=True)
class Schedule:
    """A diffusion model's variance-preserving noise schedule and its DDIM grid.

    Attributes:
        alphas_cumprod: α_t², float64 `[T]`.
        final_alpha_cumprod: α² after the last step (1 with `set_alpha_to_one`, else that of t = 0).
        prediction_type: what the denoiser's output means, as in diffusers.
        timestep_spacing: "leading", "trailing" or "linspace", as in diffusers.
        steps_offset: added to a "leading" grid.
        clip_range: predicted clean latents are clipped to ± this; None leaves them.
        variance_preserving: True, `α_t² + σ_t² = 1`.
    """

    alphas_cumprod: Float[Tensor, " time"]
    final_alpha_cumprod: float = 1.0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    clip_range: float | None = None
    variance_preserving: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """The schedule that diffusers' DDIMScheduler makes of a scheduler configuration (of any scheduler class).

        Args:
            config: a diffusers scheduler's configuration.

        Returns:
            The schedule; the constants are diffusers' own float32 values, so that samplers agree.

        Raises:
            ValueError: if the configuration asks for dynamic thresholding, which latents do not need.
        """
        scheduler = ddim_scheduler(config)
        if scheduler.config.thresholding:
            raise ValueError("the scheduler asks for dynamic thresholding, which is for pixel models; set it to false")
        return cls(
            alphas_cumprod=scheduler.alphas_cumprod.double(),
            final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
            prediction_type=scheduler.config.prediction_type,
            timestep_spacing=scheduler.config.timestep_spacing,
            steps_offset=scheduler.config.steps_offset,
            clip_range=scheduler.config.clip_sample_range if scheduler.config.clip_sample else None,
        )

    def __len__(self) -> int:
        """How many timesteps the model was trained at."""
        return len(self.alphas_cumprod)

    def _level(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        table = self.alphas_cumprod.to(t.device)
        final = torch.full((), self.final_alpha_cumprod, dtype=table.dtype, device=t.device)
        return torch.where(t < 0, final, table[t.clamp(min=0)])

    def alpha(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Signal level α_t.

        Args:
            t: timesteps; below 0 is the clean end.

        Returns:
            float64, on t's device.
        """
        return self._level(t).sqrt()

    def sigma(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Noise level σ_t.

        Args:
            t: timesteps; below 0 is the clean end.

        Returns:
            float64, on t's device.
        """
        return (1 - self._level(t)).sqrt()

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """The sampler's grid, as diffusers' DDIMScheduler.set_timesteps makes it.

        Args:
            steps: number of sampler steps.

        Returns:
            Timesteps, descending, int64.

        Raises:
            ValueError: if there are more steps than timesteps, or the spacing is unknown.
        """
        total = len(self.alphas_cumprod)
        if not 1 <= steps <= total:
            raise ValueError(f"a grid of {steps} steps does not fit this schedule; pass 1 to {total}")
        if self.timestep_spacing == "leading":
            grid = np.arange(steps)[::-1] * (total // steps) + self.steps_offset
        elif self.timestep_spacing == "trailing":
            grid = (np.round(np.arange(total, 0, -total / steps)) - 1).astype(np.int64)
        elif self.timestep_spacing == "linspace":
            grid = np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
        else:
            raise ValueError(f"timestep_spacing {self.timestep_spacing!r} is not leading, trailing or linspace")
        return torch.from_numpy(np.ascontiguousarray(grid, dtype=np.int64))

    def previous(self, t: Int[Tensor, "*batch"], steps: int) -> Int[Tensor, "*batch"]:
        """The timestep a sampler of that many steps goes to from t, as diffusers' DDIM counts it.

        Args:
            t: timesteps of the grid.
            steps: number of sampler steps.

        Returns:
            Timesteps; below 0 is the clean end.
        """
        return t - len(self.alphas_cumprod) // steps

    def model_time(self, t: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Time as the denoiser is told it.

        Args:
            t: timesteps.

        Returns:
            The same.
        """
        return t
