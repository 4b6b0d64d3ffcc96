"""Stable Diffusion 1.x and 2.x as a policy, over a whole `StableDiffusionPipeline` folder."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from sharpening.policies.base import Condition
from sharpening.policies.latent import LatentPolicy


class SDPolicy(LatentPolicy):
    """Adapter of Stable Diffusion; its sampler draws the images that `StableDiffusionPipeline` with DDIM draws.

    Whether the UNet predicts noise (1.x, 2-base) or velocity (2.x) stands in the scheduler's configuration. The safety
    checker is not loaded.
    """

    kind = StableDiffusionPipeline
    part = "unet"
    loading = {"safety_checker": None, "requires_safety_checker": False}

    def embed(self, prompt: str) -> Condition:
        """Embed one prompt.

        Args:
            prompt: the prompt.

        Returns:
            Token embeddings.
        """
        embeds, _ = self._pipeline.encode_prompt(prompt, self.device, 1, False)
        return Condition(embeds)

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
        return self.denoiser(x_t, time, encoder_hidden_states=condition.prompt_embeds, return_dict=False)[0]


load = SDPolicy.from_pretrained
"""What `sharpening.policies.load_policy` calls."""
