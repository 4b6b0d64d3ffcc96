"""The noise schedule of flow matching (rectified flow): `x_t = (1 − σ_t) x_0 + σ_t ε`, docs/flow-matching.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor

RESOLUTION = 2**24
"""Timesteps of a flow. Its time is continuous; float32 has 24 bits, so that whole 2^24ths lose nothing of a grid."""
CLEAN = -1


class FlowSchedule:
    """A flow's noise levels and the grid of diffusers' FlowMatchEulerDiscreteScheduler.

    A timestep t stands for the time `u = (t + 1) / 2^24` in (0, 1]; t = −1 is the clean end. The model's shift s takes
    it to the noise level `σ_t = s u / (1 + (s − 1) u)` (Esser et al., arXiv 2403.03206, Eq. 23), in training and in
    sampling: timesteps drawn evenly lean to high noise as the model's own do.

    Attributes:
        scheduler: diffusers' scheduler with the model's configuration; it makes the grids.
        shift: s; above 1 spends more of the time at high noise.
        prediction_type: "flow_prediction", the velocity `ε − x_0`.
        clip_range: None.
        variance_preserving: False, `α_t + σ_t = 1`.
    """

    prediction_type = "flow_prediction"
    clip_range = None
    variance_preserving = False

    def __init__(self, config: Mapping[str, Any], tokens: int, even_grid: bool = False) -> None:
        """Read a scheduler's configuration.

        Args:
            config: configuration of a FlowMatchEulerDiscreteScheduler.
            tokens: the transformer's tokens of an image; with dynamic shifting s grows with them.
            even_grid: whether the pipeline asks for times 1, 1 − 1/N, …, 1/N before the shift, as FLUX's does; else the
                scheduler's default.

        Raises:
            ValueError: if the configuration is another scheduler's, or asks for a sampler that is not Euler's.
        """
        name = config.get("_class_name", FlowMatchEulerDiscreteScheduler.__name__)
        if name != FlowMatchEulerDiscreteScheduler.__name__:
            raise ValueError(f"the scheduler is a {name}; save the pipeline with a FlowMatchEulerDiscreteScheduler")
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        for option in ("stochastic_sampling", "invert_sigmas"):
            if self.scheduler.config[option]:
                raise ValueError(f"the scheduler asks for {option}, which sampling here does not do; set it to false")
        settings = self.scheduler.config
        self._even_grid = even_grid
        self._mu = _dynamic_shift(settings, tokens) if settings.use_dynamic_shifting else None
        exponential = settings.time_shift_type == "exponential"
        self.shift: float = settings.shift if self._mu is None else math.exp(self._mu) if exponential else self._mu
        self._grids: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """How many timesteps there are."""
        return RESOLUTION

    def sigma(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Noise level σ_t.

        Args:
            t: timesteps; below 0 is the clean end.

        Returns:
            float64 in [0, 1], on t's device.
        """
        u = (t + 1).clamp(min=0).double() / RESOLUTION
        return self.shift * u / (1 + (self.shift - 1) * u)

    def alpha(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Signal level `α_t = 1 − σ_t`.

        Args:
            t: timesteps; below 0 is the clean end.

        Returns:
            float64 in [0, 1], on t's device.
        """
        return 1 - self.sigma(t)

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """The sampler's grid, as the pipeline has the scheduler make it.

        Args:
            steps: number of sampler steps.

        Returns:
            Timesteps, descending, int64.

        Raises:
            ValueError: if there are more steps than the scheduler's training timesteps.
        """
        total = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= total:
            raise ValueError(f"a grid of {steps} steps does not fit this schedule; pass 1 to {total}")
        if steps not in self._grids:
            even = np.linspace(1.0, 1 / steps, steps) if self._even_grid else None
            self.scheduler.set_timesteps(steps, sigmas=even, mu=self._mu)
            sigma = self.scheduler.sigmas[:-1].double()
            u = sigma / (self.shift - (self.shift - 1) * sigma)
            self._grids[steps] = (u * RESOLUTION).round().long() - 1
        return self._grids[steps]

    def previous(self, t: Int[Tensor, "*batch"], steps: int) -> Int[Tensor, "*batch"]:
        """The timestep a sampler of that many steps goes to from t.

        Args:
            t: timesteps of the grid.
            steps: number of sampler steps.

        Returns:
            Timesteps; below 0 is the clean end.
        """
        rising = torch.cat([torch.tensor([CLEAN]), self.timesteps(steps).flip(0)]).to(t.device)
        return rising[(torch.searchsorted(rising, t.contiguous()) - 1).clamp(min=0)]

    def model_time(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Time as diffusers' transformers are told it.

        Args:
            t: timesteps.

        Returns:
            `1000 σ_t` (with the scheduler's number of training timesteps), float32.
        """
        return self.sigma(t).float() * self.scheduler.config.num_train_timesteps


def _dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """μ, linear in the number of tokens, as the pipelines compute it."""
    short, long = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (long - short)
    return tokens * slope + config["base_shift"] - slope * short
