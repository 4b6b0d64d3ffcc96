"""Stable Diffusion XL as a policy, over a whole `StableDiffusionXLPipeline` folder."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from sharpening.checks import ModelFolderError
from sharpening.policies.base import Condition, Prediction
from sharpening.schedule import Schedule, ddim_moments, ddim_step, eps_and_x0


class SDXLPolicy:
    """Adapter of SDXL; its sampler draws the images that `StableDiffusionXLPipeline` with DDIM draws.

    Latents stay in float32 whatever the weights are. Only the UNet is trained.

    Attributes:
        denoiser: the UNet.
        schedule: noise levels and grids, from the pipeline's scheduler.
        latent_shape: `(C, H, W)`.
        nfe: UNet evaluations so far, calls × images.
        device: where the model is.
        max_batch: most rows of one UNet call without gradient; None does not split.
        decode_batch: most latents of one VAE call.

    Example:
        ```python
        policy = SDXLPolicy.from_pretrained("my-sdxl")
        x0 = sample(policy, policy.encode(["a red circle"]), torch.randn(1, *policy.latent_shape), steps=20)
        images = policy.decode(x0)  # uint8 [1, H, W, 3]
        ```
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, cache_size: int = 1024) -> None:
        """Take over a loaded pipeline.

        Args:
            pipeline: the pipeline; its scheduler is read as DDIM, its modules are used, not copied.
            cache_size: prompts whose embeddings are kept.
        """
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            if module is not None:
                module.requires_grad_(False).eval()
        self._pipeline = pipeline
        self.denoiser: nn.Module = pipeline.unet.eval()
        # A tenth to a fifth faster on CPUs, and batches small enough for the caches matter as much (`decode_batch`).
        self.vae = pipeline.vae.to(memory_format=torch.channels_last)
        self.schedule = Schedule.from_config(pipeline.scheduler.config)
        side = pipeline.default_sample_size
        self.latent_shape: tuple[int, int, int] = (pipeline.unet.config.in_channels, side, side)
        self._pixels = side * pipeline.vae_scale_factor
        self.device: torch.device = next(self.denoiser.parameters()).device
        self.nfe = 0
        self.max_batch: int | None = None
        self.decode_batch = 16
        self._cache: OrderedDict[str, Condition] = OrderedDict()
        self._cache_size = cache_size
        self._negative: Condition | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> SDXLPolicy:
        """Load a pipeline folder.

        Args:
            folder: a folder that `StableDiffusionXLPipeline.save_pretrained` wrote.
            device: where the model goes.
            dtype: float type of the weights; None means float32.

        Returns:
            The policy.

        Raises:
            ModelFolderError: if the weights cannot be loaded.
        """
        try:
            with _no_progress_bars():
                pipeline = StableDiffusionXLPipeline.from_pretrained(
                    folder, add_watermarker=False, local_files_only=True
                )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelFolderError(f"{folder} does not load ({reason}); copy the pipeline folder again") from error
        pipeline.set_progress_bar_config(disable=True)
        dtype = dtype or torch.float32
        for module in pipeline.components.values():
            if isinstance(module, nn.Module) and module.dtype != dtype:
                module.to(dtype)
        return cls(pipeline.to(device))

    # -- prompts ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Embed prompts, each alone, so that no embedding depends on its batch; recent ones come from a cache.

        Args:
            prompts: B prompts, at least one.

        Returns:
            Their condition, B rows.
        """
        return Condition.cat([self._encode_one(prompt) for prompt in prompts])

    def _encode_one(self, prompt: str) -> Condition:
        if prompt not in self._cache:
            embeds, _, pooled, _ = self._pipeline.encode_prompt(
                prompt=prompt, device=self.device, do_classifier_free_guidance=False
            )
            sizes = [self._pixels, self._pixels, 0, 0, self._pixels, self._pixels]
            time_ids = torch.tensor([sizes], dtype=embeds.dtype, device=self.device)
            self._cache[prompt] = Condition(embeds, pooled, time_ids)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return self._cache[prompt]

    @torch.no_grad()
    def uncondition(self, batch: int) -> Condition:
        """The empty prompt as the pipeline means it: zeros where it is configured so, else the embedding of "".

        Args:
            batch: number of rows.

        Returns:
            A condition of that many rows.
        """
        if self._negative is None:
            negative = self._encode_one("")
            if self._pipeline.config.force_zeros_for_empty_prompt:
                zeros = torch.zeros_like
                negative = Condition(zeros(negative.prompt_embeds), zeros(negative.pooled), negative.time_ids)
            self._negative = negative
        return self._negative.repeat_interleave(batch)

    # -- one step --------------------------------------------------------------------------------------------------

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
            guidance_scale: above 1, both the prompt and the empty prompt are evaluated, in one batch, as the pipeline
                does; 1 and below is the conditional prediction alone.

        Returns:
            The prediction, in x_t's float type.
        """
        if guidance_scale > 1:
            both = Condition.cat([self.uncondition(len(x_t)), condition.to(self.device)])
            negative, positive = self._denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
            output = negative + guidance_scale * (positive - negative)
        else:
            output = self._denoise(x_t, t, condition)
        alpha_t, sigma_t = self._levels(t, x_t)
        eps, x0 = eps_and_x0(output.to(x_t.dtype), x_t, alpha_t, sigma_t, self.schedule.prediction_type)
        if self.schedule.clip_range is not None:
            x0 = x0.clamp(-self.schedule.clip_range, self.schedule.clip_range)
        return Prediction(eps=eps, x0=x0)

    def _denoise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.nfe += len(x_t)
        dtype = next(self.denoiser.parameters()).dtype
        condition = condition.to(self.device, dtype)
        size = len(x_t) if torch.is_grad_enabled() or self.max_batch is None else self.max_batch
        outputs = [
            self.denoiser(
                x_t[start : start + size].to(dtype),
                t[start : start + size],
                encoder_hidden_states=condition.prompt_embeds[start : start + size],
                added_cond_kwargs={
                    "text_embeds": condition.pooled[start : start + size],
                    "time_ids": condition.time_ids[start : start + size],
                },
                return_dict=False,
            )[0]
            for start in range(0, len(x_t), max(size, 1))
        ]
        return torch.cat(outputs) if outputs else torch.empty_like(x_t)

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *(1,) * (like.ndim - 1))
        return self.schedule.alpha(t).to(like).view(shape), self.schedule.sigma(t).to(like).view(shape)

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
        """One DDIM step; each row may be at another timestep.

        Args:
            x_t: noisy latents.
            t: where they are.
            t_prev: where they go; below 0 is the clean end.
            prediction: the policy's prediction at (x_t, t).
            eta: η, share of DDPM's noise that is added; 0 is deterministic.
            noise: standard normal, needed for η > 0.

        Returns:
            x_prev.
        """
        levels = (*self._levels(t, x_t), *self._levels(t_prev, x_t))
        return ddim_step(prediction.x0, prediction.eps, *levels, eta, noise)

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
        return ddim_moments(prediction.x0, prediction.eps, *levels, eta)

    def snr(self, t: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Signal-to-noise ratio `α_t² / σ_t²`.

        Args:
            t: timesteps.

        Returns:
            One ratio a timestep.
        """
        return (self.schedule.alpha(t) / self.schedule.sigma(t)).square()

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

    # -- images ----------------------------------------------------------------------------------------------------

    def pixels(
        self, latents: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch 3 pixel_height pixel_width"]:
        """Images of latents as the decoder draws them, with its graph where gradients are enabled.

        Args:
            latents: clean latents, scaled as the UNet sees them.

        Returns:
            float32 in [0, 1].
        """
        config = self.vae.config
        latents = latents / config.scaling_factor
        if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
            mean, std = (latents.new_tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
            latents = latents * std + mean
        drawn = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (drawn.float() * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channel height width"]) -> np.ndarray:
        """Images of latents, rounded to 8 bit as the pipeline's image processor does.

        Args:
            latents: clean latents, scaled as the UNet sees them.

        Returns:
            uint8 `[B, H, W, 3]`.
        """
        if not len(latents):
            return np.zeros((0, self._pixels, self._pixels, 3), np.uint8)
        drawn = [self.pixels(chunk).permute(0, 2, 3, 1).cpu().numpy() for chunk in latents.split(self.decode_batch)]
        return (np.concatenate(drawn) * 255).round().astype(np.uint8)

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> Float[Tensor, "batch channel height width"]:
        """Clean latents of images: the VAE's mean, scaled as the UNet sees them.

        Args:
            images: uint8 `[B, H, W, 3]`, of the model's own resolution.

        Returns:
            Latents, on the policy's device.

        Raises:
            ValueError: if the images have another resolution.
        """
        if images.shape[1:] != (self._pixels, self._pixels, 3):
            raise ValueError(f"images are {images.shape[1:]}, but the model draws ({self._pixels}, {self._pixels}, 3)")
        config = self.vae.config
        pixels = torch.from_numpy(images).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        found = [self.vae.encode(chunk).latent_dist.mean.float() for chunk in pixels.split(self.decode_batch)]
        latents = torch.cat(found)
        if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
            mean, std = (latents.new_tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
            latents = (latents - mean) / std
        return latents * config.scaling_factor

    # -- weights ---------------------------------------------------------------------------------------------------

    def trainable_state(self) -> dict[str, Tensor]:
        """A snapshot of the UNet.

        Returns:
            Name to CPU tensor; copies, so later updates leave them alone.
        """
        return {name: value.detach().to("cpu", copy=True) for name, value in self.denoiser.state_dict().items()}

    @torch.no_grad()
    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Take over a snapshot of the UNet; the tensors are copied, read-only ones will do.

        Args:
            state: what `trainable_state` returned.

        Raises:
            ValueError: if names or shapes are not this UNet's.
        """
        own = self.denoiser.state_dict()
        if own.keys() != state.keys():
            missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ValueError(f"the weights are of another UNet: missing {missing[:3]}, unknown {foreign[:3]}")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ValueError(f"the weights are of another UNet: {name} is {tuple(state[name].shape)}")
            value.copy_(state[name])

    def frozen_copy(self) -> SDXLPolicy:
        """The reference: a copy of the UNet without gradient; VAE, text encoders and embeddings are shared.

        Returns:
            A policy of its own nfe count.
        """
        other = copy.copy(self)
        other.denoiser = copy.deepcopy(self.denoiser).requires_grad_(False).eval()
        other.nfe = 0
        return other

    def pipeline(self) -> StableDiffusionXLPipeline:
        """The diffusers pipeline with the present weights and a DDIM scheduler.

        Returns:
            A pipeline that shares the modules.
        """
        components = dict(self._pipeline.components)
        components["unet"] = self.denoiser
        components["scheduler"] = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        zeros = self._pipeline.config.force_zeros_for_empty_prompt
        pipeline = StableDiffusionXLPipeline(**components, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline; `StableDiffusionXLPipeline.from_pretrained` loads it without this project.

        Args:
            folder: where to.
        """
        with _no_progress_bars():
            self.pipeline().save_pretrained(folder, safe_serialization=True)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading and saving take a moment; their bars would only break up a run's log."""
    bars = (diffusers_logging, transformers_logging)
    shown = [logging.is_progress_bar_enabled() for logging in bars]
    for logging in bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, was_shown in zip(bars, shown, strict=True):
            if was_shown:
                logging.enable_progress_bar()


load = SDXLPolicy.from_pretrained
"""What `sharpening.policies.load_policy` calls."""
