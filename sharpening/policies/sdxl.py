"""Stable Diffusion XL as a policy, over a whole `StableDiffusionXLPipeline` folder."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Float
from torch import Tensor

from sharpening.policies.base import Condition
from sharpening.policies.latent import LatentPolicy


class SDXLPolicy(LatentPolicy):
    """Adapter of SDXL; its sampler draws the images that `StableDiffusionXLPipeline` with DDIM draws."""

    kind = StableDiffusionXLPipeline
    part = "unet"
    loading = {"add_watermarker": False}

    def embed(self, prompt: str) -> Condition:
        """Embed one prompt with both text encoders.

        Args:
            prompt: the prompt.

        Returns:
            Token embeddings and the second encoder's pooled embedding.
        """
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=prompt, device=self.device, do_classifier_free_guidance=False
        )
        return Condition(embeds, pooled)

    def tell_size(self, condition: Condition) -> Condition:
        """Add the size ids of uncropped images.

        Args:
            condition: embeddings of prompts.

        Returns:
            The same with size ids, for the empty prompt too, as the pipeline has it.
        """
        (height, width), embeds = self.size, condition.prompt_embeds
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=embeds.device)
        return replace(condition, time_ids=ids.repeat(len(condition), 1))

    def empty(self) -> Condition:
        """The empty prompt as the pipeline means it.

        Returns:
            Zeros where it is configured so, else the embedding of "".
        """
        negative = self._encode_one("")
        if not self._pipeline.config.force_zeros_for_empty_prompt:
            return negative
        return negative.map(torch.zeros_like)

    def denoise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        time: Tensor,
        condition: Condition,
        guidance_scale: float,
    ) -> Float[Tensor, "batch channel height width"]:
        """One call of the UNet.

        Args:
            x_t: noisy latents.
            time: timesteps.
            condition: one row a latent.
            guidance_scale: the UNet is not told it.

        Returns:
            Noise or velocity.
        """
        del guidance_scale
        added = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
        embeds = condition.prompt_embeds
        return self.denoiser(x_t, time, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]


load = SDXLPolicy.from_pretrained
"""What `sharpening.policies.load_policy` calls."""
