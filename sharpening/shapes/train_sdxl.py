"""Trains the embedded world's SDXL: `python -m sharpening.shapes.train sdxl --vae VAE --output_dir DIR`.

A real `StableDiffusionXLPipeline` (6 M parameters): epsilon-prediction on captions and images, both text encoders
trained jointly, 10 % of the captions dropped for classifier-free guidance. The run is deliberately short: the
learning rate is annealed to zero where the verifiers still leave clear room, so that there is something to sharpen.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sharpening.shapes.benchmark import caption_for, excluded_prompts, training_scene, validation_benchmark
from sharpening.shapes.render import render
from sharpening.shapes.scene import IMAGE_SIZE
from sharpening.shapes.tokenizer import CONTEXT_LENGTH, build_tokenizer
from sharpening.shapes.train_vae import LATENT_CHANNELS, to_unit
from sharpening.shapes.verifiers import verify

TEXT_WIDTH = 64
DROPPED_CAPTIONS = 0.1
SNR_GAMMA = 1.0
"""Cap of the signal-to-noise ratio in the loss' weights (min-SNR-γ, Hang et al., arXiv 2303.09556)."""


def build_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    """A fresh, untrained pipeline of the shipped architecture around a trained VAE."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(80, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=(5, 8),
        cross_attention_dim=2 * TEXT_WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + TEXT_WIDTH,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def encode_captions(pipeline: StableDiffusionXLPipeline, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt embeddings `[B, 32, 128]` and pooled ones `[B, 64]`, as the pipeline computes them, with gradient."""
    tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    first = pipeline.text_encoder(tokens, output_hidden_states=True)
    second = pipeline.text_encoder_2(tokens, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def diffusion_loss(
    pipeline: StableDiffusionXLPipeline, latents: torch.Tensor, captions: list[str], generator: torch.Generator
) -> torch.Tensor:
    """Weighted squared error of the predicted noise at uniform timesteps; latents `[B, 8, 8, 8]`.

    Weights `min(SNR, γ) / SNR`: unweighted, nearly all of the loss is the noise of nearly clean latents, and what the
    caption decides (which colour on which shape, where) is settled long before, where errors are small.
    """
    batch = len(latents)
    embeds, pooled = encode_captions(pipeline, captions)
    keep = (torch.rand(batch, generator=generator) >= DROPPED_CAPTIONS).float()
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(0, pipeline.scheduler.config.num_train_timesteps, (batch,), generator=generator)
    time_ids = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]], dtype=torch.float32)
    added = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids.expand(batch, -1)}
    noisy = pipeline.scheduler.add_noise(latents, noise, t)
    predicted = pipeline.unet(noisy, t, embeds * keep[:, None, None], added_cond_kwargs=added).sample
    clean = pipeline.scheduler.alphas_cumprod[t]
    snr = clean / (1 - clean)
    return (snr.clamp(max=SNR_GAMMA) / snr * F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))).mean()


@torch.no_grad()
def verified(pipeline: StableDiffusionXLPipeline, guidance_scale: float, every: int = 5) -> tuple[float, float]:
    """Mean share of facts and share of fully right prompts on every `every`-th validation prompt, 20 steps."""
    prompts = validation_benchmark()[::every]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [p.prompt for p in prompts],
        num_inference_steps=20,
        guidance_scale=guidance_scale,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    answers = [verify((255 * i).round().astype(np.uint8), p.facts) for i, p in zip(images, prompts, strict=True)]
    return float(np.mean([np.mean(a) for a in answers])), float(np.mean([all(a) for a in answers]))


def _rate_factor(taken: int, start_step: int, steps: int) -> float:
    """Share of the peak learning rate: 5 % warm-up, then a cosine to zero; 30 steps of warm-up after a fresh start."""
    step, warmup = start_step + taken, 0.05 * steps
    rise = min(1.0, (taken + 1) / 30) if start_step else 1.0
    if step < warmup:
        return rise * (0.04 + 0.96 * step / warmup)
    return rise * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def train_sdxl(
    output_dir: Path,
    vae_dir: Path,
    steps: int = 9000,
    batch_size: int = 32,
    lr: float = 1.5e-3,
    seed: int = 0,
    pool_size: int = 20000,
    start_from: Path | None = None,
    start_step: int = 0,
) -> None:
    """Train text encoders and UNet on random scenes and save the pipeline folder every 500 steps.

    Args:
        output_dir: receives the `StableDiffusionXLPipeline` folder.
        vae_dir: folder of the trained VAE.
        steps: optimiser steps of the whole training; one cycle of the learning rate.
        batch_size: captions a step.
        lr: peak learning rate.
        seed: seed of weights, scenes, captions and noise.
        pool_size: scenes to draw from.
        start_from: a folder this function saved, to go on from (with other scenes, and AdamW's state anew).
        start_step: the step after which that folder was saved.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + start_step)
    rng = np.random.default_rng([seed, 3, start_step])
    excluded = excluded_prompts()
    vae = AutoencoderKL.from_pretrained(vae_dir).eval().requires_grad_(False)
    scenes = [training_scene(rng) for _ in range(pool_size)]
    tokenizer = build_tokenizer([caption_for(scene, rng, set())[0] for scene in scenes])
    latents = torch.cat([_latents(vae, scenes[i : i + 50]) for i in range(0, pool_size, 50)])
    if start_from is None:
        pipeline = build_pipeline(vae, tokenizer)
    else:
        pipeline = StableDiffusionXLPipeline.from_pretrained(start_from, vae=vae)
        tokenizer = pipeline.tokenizer
    trained = [pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2]
    parameters = [p for module in trained for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, start_step, steps))
    started = time.monotonic()
    smooth = 1.0
    for step in range(start_step, steps):
        rows = rng.integers(0, pool_size, batch_size)
        captions = [caption_for(scenes[row], rng, excluded)[0] for row in rows]
        loss = diffusion_loss(pipeline, latents[rows], captions, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        smooth += (loss.item() - smooth) * max(0.02, 1 / (step - start_step + 1))
        if step % 50 == 0:
            print(f"sdxl step {step} loss {smooth:.4f} ({time.monotonic() - started:.0f} s)", flush=True)
        if (step + 1) % 500 == 0 or step == steps - 1:
            for guidance_scale in (1.0, 3.0):
                facts, right = verified(pipeline, guidance_scale)
                print(f"sdxl step {step} guidance {guidance_scale}: facts {facts:.3f} all {right:.3f}", flush=True)
            pipeline.save_pretrained(output_dir, safe_serialization=True)
            _forget_paths(output_dir)


def _forget_paths(folder: Path) -> None:
    """Remove from a saved pipeline's configurations where its parts were loaded from: paths of this machine."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n")


@torch.no_grad()
def _latents(vae: AutoencoderKL, scenes: list) -> torch.Tensor:
    images = to_unit(np.stack([render(scene, supersample=3) for scene in scenes]))
    return vae.encode(images).latent_dist.mean * vae.config.scaling_factor
