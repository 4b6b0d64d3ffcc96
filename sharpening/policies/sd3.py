"""Stable Diffusion 3 and 3.5 as a policy, over a whole `StableDiffusion3Pipeline` folder."""

from __future__ import annotations

from diffusers import StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from sharpening.policies.base import Condition
from sharpening.policies.flow import FlowPolicy


class SD3Policy(FlowPolicy):
    """Adapter of Stable Diffusion 3; its sampler draws the images that `StableDiffusion3Pipeline` draws."""

    kind = StableDiffusion3Pipeline
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip

    def embed(self, prompt: str) -> Condition:
        """Embed one prompt with both CLIP encoders and T5 (zeros where the folder has no T5).

        Args:
            prompt: the prompt.

        Returns:
            Token embeddings, and both CLIP encoders' pooled embeddings side by side.
        """
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            prompt, prompt_2=None, prompt_3=None, device=self.device, do_classifier_free_guidance=False
        )
        return Condition(embeds, pooled)

    def denoise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        time: Tensor,
        condition: Condition,
        guidance_scale: float,
    ) -> Float[Tensor, "batch channel height width"]:
        """One call of the transformer.

        Args:
            x_t: noisy latents.
            time: `1000 σ_t`.
            condition: one row a latent.
            guidance_scale: the transformer is not told it.

        Returns:
            Velocity `ε − x_0`.
        """
        del guidance_scale
        return self.denoiser(
            hidden_states=x_t,
            timestep=time,
            encoder_hidden_states=condition.prompt_embeds,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]


load = SD3Policy.from_pretrained
"""What `sharpening.policies.load_policy` calls."""
