"""FLUX.1 (dev and schnell) as a policy, over a whole `FluxPipeline` folder."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline
from jaxtyping import Float
from torch import Tensor

from sharpening.policies.base import Condition
from sharpening.policies.flow import FlowPolicy

TIME_UNIT = 1000
"""The pipeline divides the scheduler's timesteps by this before it hands them to the transformer."""


class FluxPolicy(FlowPolicy):
    """Adapter of FLUX.1; its sampler draws the images that `FluxPipeline` draws.

    Guidance is distilled into the model, so every prediction is one evaluation. The transformer of FLUX.1-dev is told
    the scale, at 1 as well (the pipeline's default is 3.5); that of FLUX.1-schnell knows none, and a scale above 1 is
    refused. Latents have the shape of the VAE's; only the transformer sees them in packs of 2 × 2.
    """

    kind = FluxPipeline
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip
    even_grid = True

    def native_side(self) -> int:
        """Side of a latent at the model's own resolution.

        Returns:
            By the VAE's `sample_size`, as the transformer's configuration has none.
        """
        return int(self.vae.config.sample_size) // self._pipeline.vae_scale_factor

    def prediction_nfe(self, guidance_scale: float) -> int:
        """Denoiser evaluations that one prediction costs.

        Args:
            guidance_scale: of the prediction.

        Returns:
            1.

        Raises:
            ValueError: if the model is not told the scale, and it is above 1.
        """
        if guidance_scale > 1 and not self.config.guidance_embeds:
            raise ValueError(f"this FLUX knows no guidance scale, so {guidance_scale:g} changes nothing; pass 1")
        return 1

    def embed(self, prompt: str) -> Condition:
        """Embed one prompt with T5 and CLIP.

        Args:
            prompt: the prompt.

        Returns:
            T5's token embeddings and CLIP's pooled embedding.
        """
        embeds, pooled, _ = self._pipeline.encode_prompt(prompt, device=self.device)
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
            guidance_scale: told to the transformer where it has an embedding for it.

        Returns:
            Velocity `ε − x_0`.
        """
        told = self.config.guidance_embeds
        guidance = torch.full((len(x_t),), guidance_scale, dtype=torch.float32, device=x_t.device) if told else None
        height, width = x_t.shape[2:]
        output = self.denoiser(
            hidden_states=pack(x_t),
            timestep=time / TIME_UNIT,
            guidance=guidance,
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.prompt_embeds,
            txt_ids=x_t.new_zeros(condition.prompt_embeds.shape[1], 3),
            img_ids=image_ids(height // self.patch, width // self.patch).to(x_t),
            return_dict=False,
        )[0]
        return unpack(output, height, width)


def pack(x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch token width"]:
    """Latents as tokens, each a square of 2 × 2 latent pixels.

    Args:
        x: latents `[B, C, H, W]`.

    Returns:
        `[B, H/2 · W/2, 4 C]`, row by row.
    """
    batch, channels, height, width = x.shape
    squares = x.view(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(
    tokens: Float[Tensor, "batch token width"], height: int, width: int
) -> Float[Tensor, "batch channel height width"]:
    """Latents of tokens; undoes `pack`.

    Args:
        tokens: `[B, H/2 · W/2, 4 C]`.
        height: H.
        width: W.

    Returns:
        `[B, C, H, W]`.
    """
    squares = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def image_ids(rows: int, columns: int) -> Float[Tensor, "token 3"]:
    """Where image tokens stand: 0, row, column.

    Args:
        rows: tokens from top to bottom.
        columns: tokens from left to right.

    Returns:
        One row a token, row by row.
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).view(-1, 3).float()


load = FluxPolicy.from_pretrained
"""What `sharpening.policies.load_policy` calls."""
