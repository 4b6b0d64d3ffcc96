"""PixArt-Σ as a policy, over a whole `PixArtSigmaPipeline` folder."""

from __future__ import annotations

from diffusers import PixArtSigmaPipeline
from diffusers.utils import is_bs4_available, is_ftfy_available
from jaxtyping import Float
from torch import Tensor

from sharpening.policies.base import Condition
from sharpening.policies.latent import LatentPolicy


class PixArtPolicy(LatentPolicy):
    """Adapter of PixArt-Σ; its sampler draws the images that `PixArtSigmaPipeline` with DDIM draws."""

    kind = PixArtSigmaPipeline
    part = "transformer"
    patch = 2

    def embed(self, prompt: str) -> Condition:
        """Embed one prompt with T5; captions are cleaned where the pipeline would clean them.

        Args:
            prompt: the prompt.

        Returns:
            Token embeddings, and which of the tokens are the prompt's.
        """
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=is_bs4_available() and is_ftfy_available(),
        )
        return Condition(embeds, mask=mask)

    def denoise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        time: Tensor,
        condition: Condition,
        guidance_scale: float,
    ) -> Float[Tensor, "batch channel height width"]:
        """One call of the transformer; the variance that it predicts as well is left out.

        Args:
            x_t: noisy latents.
            time: timesteps.
            condition: one row a latent.
            guidance_scale: the transformer is not told it.

        Returns:
            Noise.
        """
        del guidance_scale
        output = self.denoiser(
            x_t,
            encoder_hidden_states=condition.prompt_embeds,
            encoder_attention_mask=condition.mask,
            timestep=time,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return output[:, : x_t.shape[1]]


load = PixArtPolicy.from_pretrained
"""What `sharpening.policies.load_policy` calls."""
