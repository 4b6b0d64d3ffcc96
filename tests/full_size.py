"""Published models at full size without weights: their parameters, and the memory that training them takes.

`python -m tests.full_size` prints the table of docs/families.md. Nothing is downloaded and no weight is allocated:
modules are made on the meta device from their published configurations, and what a forward pass keeps for the backward
pass is counted as autograd keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sharpening.policies import adapters
from sharpening.policies.flux import FluxPolicy
from sharpening.policies.scheduled import ScheduledPolicy
from sharpening.policies.sd3 import SD3Policy

LORA_TARGETS = {SD3Transformer2DModel: SD3Policy.lora_targets, FluxTransformer2DModel: FluxPolicy.lora_targets}
BF16, TRAINED = 2, 16
"""Bytes a parameter: frozen in bf16; trained by AdamW with weights and gradients in bf16 (2 + 2), master weights and
both moments in float32 (4 + 4 + 4)."""


def clip_l(kind: type[nn.Module] = CLIPTextModel) -> nn.Module:
    return kind(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    )


def clip_h() -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512
        )
    )


def clip_g() -> nn.Module:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
    )


def t5_xxl() -> nn.Module:
    return T5EncoderModel(
        T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def vae(channels: int) -> nn.Module:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=channels == 4, use_post_quant_conv=channels == 4,
    )  # fmt: skip


def sd(cross_attention_dim: int, attention_head_dim: Any, linear: bool) -> nn.Module:
    return UNet2DConditionModel(
        cross_attention_dim=cross_attention_dim, attention_head_dim=attention_head_dim, use_linear_projection=linear
    )


def sdxl() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def sd3(heads: int, layers: int, **config: Any) -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=128, num_layers=layers, num_attention_heads=heads, caption_projection_dim=64 * heads, **config
    )


def pixart() -> nn.Module:
    return PixArtTransformer2DModel(caption_channels=4096, interpolation_scale=2, use_additional_conditions=False)


Inputs = Callable[[int], dict[str, Any]]


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


def unet_inputs(width: int, added: bool = False) -> Inputs:
    def inputs(pixels: int) -> dict[str, Any]:
        side = pixels // 8
        given = {"sample": empty(1, 4, side, side), "timestep": empty(1), "encoder_hidden_states": empty(1, 77, width)}
        extra = {"added_cond_kwargs": {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}} if added else {}
        return given | extra

    return inputs


def sd3_inputs(pixels: int) -> dict[str, Any]:
    return {
        "hidden_states": empty(1, 16, pixels // 8, pixels // 8), "timestep": empty(1),
        "encoder_hidden_states": empty(1, 77 + 256, 4096), "pooled_projections": empty(1, 2048),
    }  # fmt: skip


def flux_inputs(pixels: int) -> dict[str, Any]:
    tokens = (pixels // 16) ** 2
    return {
        "hidden_states": empty(1, tokens, 64), "timestep": empty(1), "guidance": empty(1),
        "encoder_hidden_states": empty(1, 512, 4096), "pooled_projections": empty(1, 768),
        "txt_ids": empty(512, 3), "img_ids": empty(tokens, 3),
    }  # fmt: skip


def pixart_inputs(pixels: int) -> dict[str, Any]:
    return {
        "hidden_states": empty(1, 4, pixels // 8, pixels // 8), "timestep": empty(1),
        "encoder_hidden_states": empty(1, 300, 4096), "encoder_attention_mask": empty(1, 300),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A published model: its denoiser, what stands frozen beside it, and what the denoiser is called with."""

    denoiser: Callable[[], nn.Module]
    frozen: tuple[Callable[[], nn.Module], ...]
    pixels: int
    inputs: Inputs


def with_projection() -> nn.Module:
    return clip_l(CLIPTextModelWithProjection)


SD3_FROZEN = (with_projection, clip_g, t5_xxl, lambda: vae(16))
MODELS = {
    "SD 1.5": Model(lambda: sd(768, 8, False), (clip_l, lambda: vae(4)), 512, unet_inputs(768)),
    "SD 2.1": Model(lambda: sd(1024, (5, 10, 20, 20), True), (clip_h, lambda: vae(4)), 768, unet_inputs(1024)),
    "SDXL base": Model(sdxl, (clip_l, clip_g, lambda: vae(4)), 1024, unet_inputs(2048, added=True)),
    "SD 3 medium": Model(lambda: sd3(24, 24, pos_embed_max_size=192), SD3_FROZEN, 1024, sd3_inputs),
    "SD 3.5 medium": Model(
        lambda: sd3(24, 24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        SD3_FROZEN, 1024, sd3_inputs,
    ),
    "SD 3.5 large": Model(
        lambda: sd3(38, 38, pos_embed_max_size=192, qk_norm="rms_norm"), SD3_FROZEN, 1024, sd3_inputs
    ),
    "FLUX.1": Model(
        lambda: FluxTransformer2DModel(guidance_embeds=True), (clip_l, t5_xxl, lambda: vae(16)), 1024, flux_inputs
    ),
    "PixArt-Σ": Model(pixart, (t5_xxl, lambda: vae(4)), 1024, pixart_inputs),
}  # fmt: skip


def parameters(build: Callable[[], nn.Module]) -> int:
    """Parameters of a module, which is made without its weights."""
    return sum(p.numel() for p in on_meta(build).parameters())


def adapters_of(model: Model, rank: int) -> tuple[int, int]:
    """Layers that LoRA adapts by default, and parameters of their adapters."""
    denoiser = on_meta(model.denoiser)
    targets = LORA_TARGETS.get(type(denoiser), ScheduledPolicy.lora_targets)
    adapters.add(denoiser, rank, rank, targets, seed=0)
    found = adapters.parameters(denoiser).values()
    return len(found) // 2, sum(parameter.numel() for parameter in found)


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: queries, keys, values, output, and a float32 log-sum-exp for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, torch.empty(query.shape[:-1], device="meta"))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError


class _Kept:
    """Bytes of the storages that autograd keeps, each counted once; parameters are not activations."""

    def __init__(self, ignore: set[int]) -> None:
        self._ignore, self._tensors, self.bytes = ignore, {}, 0

    def add(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._ignore and storage._cdata not in self._tensors:
            self._tensors[storage._cdata] = x  # kept alive, so that no other storage takes its place
            self.bytes += storage.nbytes()
        return x

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda x: x)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without weights and without tables, which for some transformers are as large."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return build()
    finally:
        torch.set_default_dtype(torch.float32)


def activations(model: Model, pixels: int, checkpointing: bool) -> int:
    """Bytes that a forward pass of one image in bf16 keeps for the backward pass.

    With gradient checkpointing that is every block's input, and once the inside of the largest block.
    """
    denoiser = on_meta(model.denoiser)
    own = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    outside, inside = _Kept(own), [0]

    def checkpoint(block: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        for x in (*arguments, *named.values()):
            if isinstance(x, Tensor):
                outside.add(x)
        kept = _Kept(own)
        with kept.hooks():
            output = block(*arguments, **named)
        inside.append(kept.bytes)
        return output

    if checkpointing:
        denoiser._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=checkpoint)
    with ExitStack() as stack:
        fused = lambda query, key, value, *_, **__: _FusedAttention.apply(query, key, value)  # noqa: E731
        stack.enter_context(patch("torch.nn.functional.scaled_dot_product_attention", fused))
        stack.enter_context(outside.hooks())
        denoiser(**model.inputs(pixels))
    return outside.bytes + max(inside)


def weights_columns(model: Model) -> list[str]:
    """The columns of docs/families.md that follow from the parameters, in 10⁹ and GB."""
    trained, frozen = parameters(model.denoiser), sum(parameters(build) for build in model.frozen)
    return [f"{trained / 1e9:.3f}", *(f"{n / 1e9:.1f}" for n in (BF16 * trained, TRAINED * trained, BF16 * frozen))]


def activation_columns(model: Model, pixels: int) -> list[str]:
    """The columns of docs/families.md about one image, in GB."""
    return [f"{activations(model, pixels, checkpointing) / 1e9:.1f}" for checkpointing in (False, True)]


if __name__ == "__main__":
    for name, model in MODELS.items():
        weights = weights_columns(model)
        for pixels in sorted({512, model.pixels}):
            print("|", " | ".join([name, str(pixels), *weights, *activation_columns(model, pixels)]), "|")
