"""What the adapters of diffusers' text-to-image pipelines share: prompts and their cache, the VAE, saving."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float
from torch import Tensor, nn

from sharpening.policies import adapters
from sharpening.policies.base import Condition
from sharpening.policies.loading import load_pipeline, no_progress_bars
from sharpening.policies.prompt_length import count_overlong, silence_pipelines
from sharpening.policies.scheduled import ScheduledPolicy
from sharpening.schedule import NoiseSchedule, Schedule, ddim_scheduler


class LatentPolicy(ScheduledPolicy):
    """Adapter of a latent-diffusion pipeline; its sampler draws the images that the pipeline draws.

    Latents stay in float32 whatever the weights are. Only the denoiser is trained. A family says which pipeline it is
    (`kind`), which of its parts is the denoiser (`part`), and how it is told about prompts (`embed`, `denoise`).

    Attributes:
        kind: class of the pipeline.
        part: name of the denoiser among the pipeline's components.
        patch: latent pixels on a side of what the denoiser handles as one; latents are a multiple of it.
        loading: further arguments of the pipeline's `from_pretrained`.
        vae: the VAE.
        tiny_vae: decodes images in its stead, where there is one (`decode_with`).
        latent_shape: `(C, H, W)`.
        decode_batch: most latents of one VAE call.

    Example:
        ```python
        policy = load_policy("my-sdxl")
        x0 = sample(policy, policy.encode(["a red circle"]), torch.randn(1, *policy.latent_shape), steps=20)
        images = policy.decode(x0)  # uint8 [1, H, W, 3]
        ```
    """

    kind: ClassVar[type[DiffusionPipeline]]
    part: ClassVar[str]
    patch: ClassVar[int] = 1
    loading: ClassVar[dict[str, Any]] = {}

    def __init__(self, pipeline: DiffusionPipeline, resolution: int | None = None, cache_size: int = 1024) -> None:
        """Take over a loaded pipeline.

        Args:
            pipeline: the pipeline; its modules are used, not copied.
            resolution: width and height of images in pixels; None means the model's own.
            cache_size: prompts whose embeddings are kept.

        Raises:
            ValueError: if the denoiser cannot draw images of that resolution, or is one of a consistency model.
        """
        super().__init__()
        silence_pipelines()
        self._pipeline = pipeline
        self.denoiser: nn.Module = getattr(pipeline, self.part).eval()
        if getattr(self.config, "time_cond_proj_dim", None) is not None:
            raise ValueError("a consistency model's UNet needs a sampler of its own; pass the model it came from")
        for name, module in pipeline.components.items():
            if isinstance(module, nn.Module) and name != self.part:
                module.requires_grad_(False).eval()
        # A tenth to a fifth faster on CPUs, and batches small enough for the caches matter as much (`decode_batch`).
        self.vae = pipeline.vae.to(memory_format=torch.channels_last)
        self.tiny_vae: AutoencoderTiny | None = None
        side = resolution or self.native_side() * pipeline.vae_scale_factor
        self._check_size(side, side)
        self._take_shape(side // pipeline.vae_scale_factor, side // pipeline.vae_scale_factor)
        self.device: torch.device = next(self.denoiser.parameters()).device
        self._cache: OrderedDict[str, Condition] = OrderedDict()
        self._cache_size = cache_size
        self._negative: Condition | None = None

    def _check_size(self, height: int, width: int) -> None:
        """Refuse images, by their pixels, that the denoiser cannot draw."""
        unit = self.patch * self._pipeline.vae_scale_factor
        size = f"{height}" if height == width else f"{height} × {width}"
        if height % unit or width % unit:
            raise ValueError(f"{type(self).kind.__name__} draws no {size} pixels; pass a multiple of {unit}")
        positions = getattr(self.config, "pos_embed_max_size", None)  # SD3's table, of which the middle is used
        if positions is not None and max(height, width) > positions * unit:
            raise ValueError(f"this model draws no {size} pixels; pass at most {positions * unit}")

    def _take_shape(self, height: int, width: int) -> None:
        """Settle what depends on the size of latents."""
        self.latent_shape = (self.vae.config.latent_channels, height, width)
        self.schedule = self.make_schedule()
        area = height * width * self._pipeline.vae_scale_factor**2
        self.decode_batch = max(1, min(16, 16 * 256**2 // area))  # a decoder's memory grows with the area

    def shaped(self, height: int, width: int) -> Self:
        """The same model, for latents of another height and width: schedule and what prompts are told follow.

        Args:
            height: H, in latent pixels.
            width: W, in latent pixels.

        Returns:
            A policy that shares everything else, its count of evaluations included; this one where it has that shape.

        Raises:
            ValueError: if the denoiser cannot draw images of that size.
        """  # noqa: DOC502
        if (height, width) == self.latent_shape[1:]:
            return self
        scale = self._pipeline.vae_scale_factor
        self._check_size(height * scale, width * scale)
        other = copy.copy(self)
        other._take_shape(height, width)
        return other

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images, in pixels."""
        scale = self._pipeline.vae_scale_factor
        return self.latent_shape[1] * scale, self.latent_shape[2] * scale

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        resolution: int | None = None,
        vae: str | Path | None = None,
    ) -> Self:
        """Load a pipeline folder.

        Args:
            folder: a folder that the pipeline's `save_pretrained` wrote.
            device: where the model goes.
            dtype: float type of the weights; None means float32.
            resolution: width and height of images in pixels; None means the model's own.
            vae: folder of the VAE that the policy has instead of the pipeline's own; None means that one.

        Returns:
            The policy.

        Raises:
            ModelFolderError: if the weights cannot be loaded.
        """  # noqa: DOC502
        return cls(load_pipeline(cls.kind, folder, device, dtype, vae, **cls.loading), resolution)

    @property
    def config(self) -> Any:
        """The denoiser's configuration."""
        return self.denoiser.config

    # -- what a family adds ----------------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, prompt: str) -> Condition:
        """Embed one prompt.

        Args:
            prompt: the prompt.

        Returns:
            Its condition, one row, whatever the size of the image: `tell_size` adds that.
        """

    def tell_size(self, condition: Condition) -> Condition:
        """Add what the denoiser is told about the size of the images it is to draw.

        Args:
            condition: embeddings of prompts.

        Returns:
            The same, unless the family's denoiser is told sizes.
        """
        return condition

    def empty(self) -> Condition:
        """What the pipeline contrasts prompts with under guidance.

        Returns:
            The embedding of "", one row, unless the family has another.
        """
        return self._encode_one("")

    def native_side(self) -> int:
        """Side of a latent at the model's own resolution.

        Returns:
            The denoiser's `sample_size`, unless the family has another.
        """
        return int(self.config.sample_size)

    def make_schedule(self) -> NoiseSchedule:
        """The noise schedule of the pipeline's scheduler.

        Returns:
            The schedule that DDIM has, unless the family has another.
        """
        return Schedule.from_config(self._pipeline.scheduler.config)

    def make_scheduler(self) -> Any:
        """The diffusers scheduler that samples as this policy does.

        Returns:
            DDIM, unless the family has another.
        """
        return ddim_scheduler(self._pipeline.scheduler.config)

    # -- prompts ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Embed prompts, each alone, so that no embedding depends on its batch; recent ones come from a cache.

        Args:
            prompts: B prompts, at least one.

        Returns:
            Their condition, B rows.
        """
        return self.tell_size(Condition.cat([self._encode_one(prompt) for prompt in prompts]))

    def _encode_one(self, prompt: str) -> Condition:
        if prompt not in self._cache:
            self._cache[prompt] = self.embed(prompt)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return self._cache[prompt]

    def overlong(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoders read; the pipeline cuts them.

        Args:
            prompts: the prompts.

        Returns:
            Their number.
        """
        return count_overlong(self._pipeline, prompts)

    @torch.no_grad()
    def uncondition(self, batch: int) -> Condition:
        """The empty prompt as the pipeline means it.

        Args:
            batch: number of rows.

        Returns:
            A condition of that many rows.
        """
        if self._negative is None:
            self._negative = self.empty()
        return self.tell_size(self._negative.repeat_interleave(batch))

    # -- images ----------------------------------------------------------------------------------------------------

    def pixels(
        self, latents: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch 3 pixel_height pixel_width"]:
        """Images of latents as the decoder draws them, with its graph where gradients are enabled.

        Args:
            latents: clean latents, scaled as the denoiser sees them.

        Returns:
            float32 in [0, 1].
        """
        latents = latents / self.vae.config.scaling_factor
        if (statistics := self._latent_statistics(latents)) is not None:
            latents = latents * statistics[1] + statistics[0]
        return self._drawn(self.vae, latents)

    @staticmethod
    def _drawn(vae: Any, latents: Tensor) -> Tensor:
        drawn = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (drawn.float() * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channel height width"]) -> np.ndarray:
        """Images of latents, rounded to 8 bit as the pipeline's image processor does; by the tiny VAE, if any.

        Args:
            latents: clean latents, scaled as the denoiser sees them.

        Returns:
            uint8 `[B, H, W, 3]`.
        """
        if not len(latents):
            return np.zeros((0, *self.size, 3), np.uint8)
        drawn = [self._look(chunk).permute(0, 2, 3, 1).cpu().numpy() for chunk in latents.split(self.decode_batch)]
        return (np.concatenate(drawn) * 255).round().astype(np.uint8)

    def _look(self, latents: Tensor) -> Tensor:
        """Pixels of latents; a tiny VAE has a scale and shift of its own, for it is made for the denoiser's latents."""
        tiny = self.tiny_vae
        if tiny is None:
            return self.pixels(latents)
        return self._drawn(tiny, latents / tiny.config.scaling_factor + tiny.config.shift_factor)

    def decode_with(self, folder: str | Path | None) -> Self:
        """The same model, whose images a tiny VAE decodes (`AutoencoderTiny`, such as TAESDXL): faster, less exact.

        Args:
            folder: its folder; None for the model's own VAE.

        Returns:
            A policy that shares everything else, with its own nfe count.

        Raises:
            ValueError: if it has other latents than the model.
        """
        other = copy.copy(self)
        other.nfe, other.tiny_vae = 0, None
        if folder is None:
            return other
        with no_progress_bars():
            tiny = AutoencoderTiny.from_pretrained(folder, torch_dtype=self.vae.dtype, local_files_only=True)
        shrunk = 2 ** (len(tiny.config.decoder_block_out_channels) - 1)
        found, wanted = (tiny.config.latent_channels, shrunk), (self.latent_shape[0], self._pipeline.vae_scale_factor)
        if found != wanted:
            raise ValueError(
                f"{folder} has {found[0]} channels at 1/{found[1]} of the pixels, but the model's latents have "
                f"{wanted[0]} at 1/{wanted[1]}; pass a tiny VAE that was made for this model"
            )
        other.tiny_vae = tiny.to(self.device).requires_grad_(False).eval()
        return other

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> Float[Tensor, "batch channel height width"]:
        """Clean latents of images: the VAE's mean, scaled as the denoiser sees them.

        Args:
            images: uint8 `[B, H, W, 3]`, of any size that the model draws.

        Returns:
            Latents, on the policy's device; `shaped` makes the policy that goes with them.

        Raises:
            ValueError: if the denoiser cannot draw images of that size.
        """  # noqa: DOC502
        self._check_size(*images.shape[1:3])
        pixels = torch.from_numpy(images).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        found = [self.vae.encode(chunk).latent_dist.mean.float() for chunk in pixels.split(self.decode_batch)]
        latents = torch.cat(found)
        if (statistics := self._latent_statistics(latents)) is not None:
            latents = (latents - statistics[0]) / statistics[1]
        return latents * self.vae.config.scaling_factor

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float] | None:
        """Mean and deviation that a VAE's latents are standardised with before they are scaled, if they are."""
        config = self.vae.config
        if getattr(config, "shift_factor", None) is not None:  # SD3's and FLUX's
            return config.shift_factor, 1.0
        if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
            mean, deviation = (like.new_tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
            return mean, deviation
        return None

    # -- the pipeline ----------------------------------------------------------------------------------------------

    def pipeline(self) -> DiffusionPipeline:
        """The diffusers pipeline with the present weights and the scheduler that samples as this policy does.

        Returns:
            A pipeline that shares the modules.
        """
        pipeline = copy.copy(self._pipeline)
        pipeline.register_modules(**{self.part: self.denoiser, "scheduler": self.make_scheduler()})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline, adapters merged into it; its class's `from_pretrained` loads it without this project.

        Args:
            folder: where to.
        """
        pipeline = self.pipeline()
        if self.adapted:
            pipeline.register_modules(**{self.part: adapters.merged(self.denoiser)})
        with no_progress_bars():
            pipeline.save_pretrained(folder, safe_serialization=True)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters as the pipeline's `load_lora_weights(folder)` reads them.

        The file is `pytorch_lora_weights.safetensors`. Families whose pipeline in diffusers loads no LoRA (PixArt) get
        a folder for `peft.PeftModel.from_pretrained`.

        Args:
            folder: where to; made if it is not there.
        """
        if not hasattr(self.kind, "save_lora_weights"):
            super().save_adapter(folder)
            return
        state, config = adapters.saved_form(self.denoiser)
        if self.part == "unet":
            state = convert_state_dict_to_diffusers(state)
        told = {f"{self.part}_lora_layers": state, f"{self.part}_lora_adapter_metadata": config.to_dict()}
        self.kind.save_lora_weights(folder, **told)
