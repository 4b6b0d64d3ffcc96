"""Text-to-image pipelines of every family with random weights: diffusers' real classes, 16 × 16 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.conftest import build_tokenizer

SIDE, CHANNELS, T5_WIDTH, CLIP_WIDTH = 8, 4, 32, 16
"""Latents are CHANNELS × SIDE × SIDE, images 2 SIDE pixels wide."""

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=2 * SIDE, latent_channels=CHANNELS, block_out_channels=(8, 16), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    )  # fmt: skip


def unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8, **config,
    )  # fmt: skip


def clip_config() -> CLIPTextConfig:
    tokenizer = build_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=CLIP_WIDTH, projection_dim=CLIP_WIDTH, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789,", *(f"▁{c}" for c in "abcdr")]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(i > 3)) for i, piece in enumerate(pieces)], extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config), tokenizer


def sd(prediction_type: str) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.7), text_encoder=CLIPTextModel(clip_config()), tokenizer=build_tokenizer(),
        unet=unet(cross_attention_dim=CLIP_WIDTH, attention_head_dim=4),
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13), text_encoder=CLIPTextModel(clip_config()), tokenizer=build_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()), tokenizer_2=build_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * CLIP_WIDTH, attention_head_dim=(2, 4), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + CLIP_WIDTH,
        ),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    )  # fmt: skip


def sd3(**scheduler: Any) -> DiffusionPipeline:
    text_encoder_3, tokenizer_3 = t5()
    return StableDiffusion3Pipeline(
        vae=vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(clip_config()), tokenizer=build_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()), tokenizer_2=build_tokenizer(),
        text_encoder_3=text_encoder_3, tokenizer_3=tokenizer_3,
        transformer=SD3Transformer2DModel(
            sample_size=SIDE, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=T5_WIDTH, caption_projection_dim=16,
            pooled_projection_dim=2 * CLIP_WIDTH, pos_embed_max_size=SIDE, dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
    )  # fmt: skip


def flux(guidance_embeds: bool, **scheduler: Any) -> DiffusionPipeline:
    text_encoder_2, tokenizer_2 = t5()
    return FluxPipeline(
        vae=vae(scaling_factor=0.36, shift_factor=0.12),
        text_encoder=CLIPTextModel(clip_config()), tokenizer=build_tokenizer(),
        text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=4 * CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=CLIP_WIDTH, guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
    )  # fmt: skip


def pixart() -> DiffusionPipeline:
    text_encoder, tokenizer = t5()
    return PixArtSigmaPipeline(
        vae=vae(scaling_factor=0.13), text_encoder=text_encoder, tokenizer=tokenizer,
        transformer=PixArtTransformer2DModel(
            sample_size=SIDE, in_channels=CHANNELS, out_channels=2 * CHANNELS, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, cross_attention_dim=16, caption_channels=T5_WIDTH, use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd-epsilon": lambda: sd("epsilon"),
    "sd-v": lambda: sd("v_prediction"),
    "sdxl": sdxl,
    "sd3": lambda: sd3(shift=3.0),
    "sd3-dynamic": lambda: sd3(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64),
    "flux-dev": lambda: flux(True, use_dynamic_shifting=True, shift=3.0, base_image_seq_len=4, max_image_seq_len=64),
    "flux-schnell": lambda: flux(False),
    "pixart": pixart,
}
"""Name to builder; a family may stand here several times."""


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """A pipeline of the family, ready to draw."""
    torch.manual_seed(seed)
    pipeline = BUILDERS[name]()
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
