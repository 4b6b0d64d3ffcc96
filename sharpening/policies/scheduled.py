"""What every policy shares: guidance, large batches, the sampler's steps over a noise schedule, weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sharpening.policies import adapters
from sharpening.policies.base import Condition, Prediction
from sharpening.schedule import NoiseSchedule, ddim_moments, ddim_step, eps_and_x0


class ScheduledPolicy(ABC):
    """A policy made of a denoiser and a noise schedule; a family adds what the denoiser is told.

    Attributes:
        denoiser: the module that is trained.
        schedule: noise levels and grids.
        device: where the model is.
        latent_shape: `(C, H, W)` of a latent.
        max_batch: most rows of one denoiser call without gradient; None does not split.
        lora_targets: ends of the names of the denoiser's attention projections, which LoRA adapts.
    """

    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    denoiser: nn.Module
    schedule: NoiseSchedule
    device: torch.device
    latent_shape: tuple[int, int, int]
    max_batch: int | None = None
    _without_adapters: bool = False

    def __init__(self) -> None:
        """Begin to count."""
        self.nfe = 0

    @property
    def nfe(self) -> int:
        """Denoiser evaluations so far, calls × latents; policies of other shapes (`shaped`) count together."""
        return self._count[0]

    @nfe.setter
    def nfe(self, value: int) -> None:
        self._count = [value]

    def shaped(self, height: int, width: int) -> Self:
        """The same model, for latents of another height and width.

        Args:
            height: H, in latent pixels.
            width: W, in latent pixels.

        Returns:
            This policy where it has that shape already.

        Raises:
            ValueError: if the model draws no such latents.
        """
        if (height, width) == self.latent_shape[1:]:
            return self
        raise ValueError(f"latents are {height} × {width}, but the model's are {self.latent_shape[1:]}")

    @abstractmethod
    def denoise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        time: Tensor,
        condition: Condition,
        guidance_scale: float,
    ) -> Float[Tensor, "batch channel height width"]:
        """One call of the denoiser.

        Args:
            x_t: noisy latents, in the weights' float type.
            time: `[B]`, what the schedule's `model_time` says.
            condition: one row a latent, in the weights' float type.
            guidance_scale: for denoisers that are told it; others are called for prompt and empty prompt instead.

        Returns:
            What the schedule's prediction type says.
        """

    @abstractmethod
    def uncondition(self, batch: int) -> Condition:
        """What guidance contrasts a prompt with.

        Args:
            batch: number of rows.

        Returns:
            A condition of that many rows.
        """

    # -- predictions -----------------------------------------------------------------------------------------------

    def prediction_nfe(self, guidance_scale: float) -> int:
        """Denoiser evaluations that one prediction costs.

        Args:
            guidance_scale: of the prediction.

        Returns:
            2 above a scale of 1 (prompt and empty prompt), else 1.
        """
        return 2 if guidance_scale > 1 else 1

    def predict(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        condition: Condition,
        guidance_scale: float = 1.0,
    ) -> Prediction:
        """Predict noise and clean latent at (x_t, t) (Eq. 5–6).

        Args:
            x_t: noisy latents.
            t: their timesteps.
            condition: one row a latent.
            guidance_scale: above 1, both the prompt and the empty prompt are evaluated, in one batch, as the pipelines
                do; 1 and below is the conditional prediction alone. Families whose denoiser is told the scale say so.

        Returns:
            The prediction, in x_t's float type.
        """
        if self.prediction_nfe(guidance_scale) == 2:
            both = Condition.cat([self.uncondition(len(x_t)), condition.to(self.device)])
            pair = self._denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), both, guidance_scale)
            negative, positive = pair.chunk(2)
            output = negative + guidance_scale * (positive - negative)
        else:
            output = self._denoise(x_t, t, condition, guidance_scale)
        levels = self._levels(t, x_t)
        eps, x0 = eps_and_x0(output.to(x_t.dtype), x_t, *levels, self.schedule.prediction_type)
        if self.schedule.clip_range is not None:
            x0 = x0.clamp(-self.schedule.clip_range, self.schedule.clip_range)
        return Prediction(eps=eps, x0=x0)

    def _denoise(self, x_t: Tensor, t: Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        """The denoiser's output, counted, in calls of at most `max_batch` rows where no graph is kept."""
        self._count[0] += len(x_t)
        dtype = next(self.denoiser.parameters()).dtype
        condition, time = condition.to(self.device, dtype), self.schedule.model_time(t)
        size = len(x_t) if torch.is_grad_enabled() or self.max_batch is None else self.max_batch
        with adapters.switched_off(self.denoiser) if self._without_adapters else nullcontext():
            outputs = [
                self.denoise(
                    x_t[start : start + size].to(dtype),
                    time[start : start + size],
                    condition.rows(start, start + size),
                    guidance_scale,
                )
                for start in range(0, len(x_t), max(size, 1))
            ]
        return torch.cat(outputs) if outputs else torch.empty_like(x_t)

    # -- the sampler -----------------------------------------------------------------------------------------------

    def levels(self, t: Int[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Signal and noise level of a latent.

        Args:
            t: timesteps; below 0 is the clean end.

        Returns:
            α_t and σ_t, float64.
        """
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t in the float type of latents, broadcast over them."""
        alpha_t, sigma_t = self.levels(t)
        shape = (-1, *(1,) * (like.ndim - 1))
        return alpha_t.to(like).view(shape), sigma_t.to(like).view(shape)

    def add_noise(
        self,
        x0: Float[Tensor, "batch channel height width"],
        eps: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Noise clean latents: `x_t = α_t x_0 + σ_t ε`.

        Args:
            x0: clean latents.
            eps: standard normal noise.
            t: timesteps.

        Returns:
            x_t.
        """
        alpha_t, sigma_t = self._levels(t, x0)
        return alpha_t * x0 + sigma_t * eps

    def target_noise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        x0: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """The noise that x_t and a clean latent imply: `(x_t − α_t x_0) / σ_t`.

        Args:
            x_t: noisy latents.
            x0: clean latents.
            t: timesteps.

        Returns:
            ε.
        """
        alpha_t, sigma_t = self._levels(t, x_t)
        return (x_t - alpha_t * x0) / sigma_t

    def step(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        t_prev: Int[Tensor, " batch"],
        prediction: Prediction,
        eta: float = 0.0,
        noise: Float[Tensor, "batch channel height width"] | None = None,
    ) -> Float[Tensor, "batch channel height width"]:
        """One DDIM step (for a flow, at η = 0, Euler's); each row may be at another timestep.

        Args:
            x_t: noisy latents; they enter through the prediction alone.
            t: where they are.
            t_prev: where they go; below 0 is the clean end.
            prediction: the policy's prediction at (x_t, t).
            eta: η, share of DDPM's noise that is added; 0 is deterministic.
            noise: standard normal, needed for η > 0.

        Returns:
            x_prev.
        """
        levels = (*self._levels(t, x_t), *self._levels(t_prev, x_t))
        return ddim_step(prediction.x0, prediction.eps, *levels, eta, noise, self.schedule.variance_preserving)

    def moments(
        self, t: Int[Tensor, " batch"], t_prev: Int[Tensor, " batch"], prediction: Prediction, eta: float
    ) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch 1 1 1"]]:
        """Mean and standard deviation of a DDIM step's Gaussian.

        Args:
            t: where the latents are.
            t_prev: where they go; below 0 is the clean end.
            prediction: the policy's prediction there.
            eta: η.

        Returns:
            The mean, and one deviation a row.
        """
        levels = (*self._levels(t, prediction.x0), *self._levels(t_prev, prediction.x0))
        return ddim_moments(prediction.x0, prediction.eps, *levels, eta, self.schedule.variance_preserving)

    def snr(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Signal-to-noise ratio `α_t² / σ_t²`.

        Args:
            t: timesteps.

        Returns:
            One ratio a timestep; 0 where a latent is pure noise.
        """
        alpha_t, sigma_t = self.levels(t)
        return (alpha_t / sigma_t).square()

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        """The sampler's grid.

        Args:
            steps: number of sampler steps.

        Returns:
            Timesteps, descending, on the policy's device.
        """
        return self.schedule.timesteps(steps).to(self.device)

    def previous(self, t: Int[Tensor, " batch"], steps: int) -> Int[Tensor, " batch"]:
        """The timestep a sampler of that many steps goes to from t.

        Args:
            t: timesteps of the grid.
            steps: number of sampler steps.

        Returns:
            Timesteps; below 0 is the clean end.
        """
        return self.schedule.previous(t, steps)

    # -- weights ---------------------------------------------------------------------------------------------------

    @property
    def adapted(self) -> bool:
        """Whether LoRA adapters are trained instead of the denoiser's own weights."""
        return bool(adapters.parameters(self.denoiser))

    def add_adapter(self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), seed: int = 0) -> None:
        """Train LoRA adapters from now on. They change nothing yet; the model as it is becomes their reference.

        Args:
            rank: rank of the adapters.
            alpha: they are scaled by `alpha / rank`; None means the rank.
            targets: ends of the names of the layers that get one; none means the family's attention projections.
            seed: of their random half.

        Raises:
            ValueError: if there are adapters already, or no layer has one of the names.
        """
        if self.adapted:
            raise ValueError("the denoiser has adapters already; load the model again for others")
        adapters.add(self.denoiser, rank, rank if alpha is None else alpha, targets or self.lora_targets, seed)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training changes; they ask for gradients from now on, and no others do.

        Returns:
            The adapters' where there are any, else the whole denoiser's.
        """
        own = adapters.parameters(self.denoiser)
        self.denoiser.requires_grad_(not own)
        chosen = list(own.values()) if own else list(self.denoiser.parameters())
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def trainable_state(self) -> dict[str, Tensor]:
        """A snapshot of what is trained: of the adapters where there are any, else of the whole denoiser.

        Returns:
            Name to CPU tensor; copies, so later updates leave them alone. A reference that is the model without its
            adapters says zeros, adapters that change nothing.
        """
        snapshot = {name: value.detach().to("cpu", copy=True) for name, value in self._trained().items()}
        return {name: value.zero_() for name, value in snapshot.items()} if self._without_adapters else snapshot

    def _trained(self) -> dict[str, Tensor]:
        own = adapters.parameters(self.denoiser)
        return {name: value.data for name, value in own.items()} if own else self.denoiser.state_dict()

    @torch.no_grad()
    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Take over a snapshot; the tensors are copied, read-only ones will do.

        Args:
            state: what `trainable_state` returned.

        Raises:
            ValueError: if names or shapes are not this denoiser's, or it is a reference without its adapters.
        """
        if self._without_adapters:
            raise ValueError("a reference shares its denoiser with the model in training; load the weights into that")
        own, kind = self._trained(), type(self.denoiser).__name__
        if own.keys() != state.keys():
            missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ValueError(f"the weights are of another {kind}: missing {missing[:3]}, unknown {foreign[:3]}")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ValueError(f"the weights are of another {kind}: {name} is {tuple(state[name].shape)}")
            value.copy_(state[name])

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters alone, as `peft.PeftModel.from_pretrained(denoiser, folder)` reads them.

        Args:
            folder: where to.
        """
        adapters.save_for_peft(self.denoiser, folder)

    def frozen_copy(self) -> Self:
        """The reference, without gradient.

        Returns:
            A policy of its own nfe count. With adapters it is the same denoiser, asked with the adapters off: no weight
            is held twice. Without, it has a copy of the denoiser. Everything else is shared.
        """
        other = copy.copy(self)
        other.nfe = 0
        if self.adapted:
            other._without_adapters = True
        else:
            other.denoiser = copy.deepcopy(self.denoiser).requires_grad_(False).eval()
        return other
