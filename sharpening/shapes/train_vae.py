"""Trains the embedded world's VAE: `python -m sharpening.shapes.train vae --output_dir DIR`.

`AutoencoderKL`, 64x64 RGB -> 8x8x8 latents. L1 + L2 + 1e-3 KL, AdamW, two phases (`train_vae`).
About 20 minutes on 2 cores.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from sharpening.shapes.render import render
from sharpening.shapes.scene import random_scene

LATENT_CHANNELS = 8


def build_vae() -> AutoencoderKL:
    """A fresh, untrained `AutoencoderKL` of the shipped architecture (about 1 M parameters)."""
    channels = (16, 32, 64, 64)
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def to_unit(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 `[B, H, W, 3]` -> float `[B, 3, H, W]` in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: 13 % warm-up, cosine down to 0.3, linear to 0 over the last 13 %."""
    warmup, anneal = 0.13 * steps, 0.13 * steps
    if step < warmup:
        return 0.04 + 0.96 * step / warmup
    if step < steps - anneal:
        progress = (step - warmup) / (steps - anneal - warmup)
        return 0.3 + 0.7 * (1 + math.cos(math.pi * progress)) / 2
    return 0.3 * (steps - step) / anneal


def pixel_weights(images: torch.Tensor, object_weight: float) -> torch.Tensor:
    """1 on the background, 1 + `object_weight` where a thing is; `[B, 3, H, W]` -> `[B, 1, H, W]`."""
    corner = images[:, :, :1, :1]
    return 1 + object_weight * ((images - corner).abs().amax(1, keepdim=True) > 0.3).float()


def train_vae(output_dir: Path, start_from: Path | None = None, seed: int = 0, steps: int | None = None) -> None:
    """Train the VAE on fresh random scenes and save it with its measured latent scale.

    The first phase learns pictures as they are; the second, whose pixels of things weigh four times as much, their
    colours and textures, which a plain mean over a mostly empty picture leaves blurred.

    Args:
        output_dir: receives the folder; the saved `scaling_factor` makes latents of unit variance.
        start_from: a trained first phase; None trains it.
        seed: seed of weights and scenes.
        steps: steps of each phase; None means the shipped model's.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    vae = build_vae() if start_from is None else AutoencoderKL.from_pretrained(start_from)
    pool = np.stack([render(random_scene(rng), supersample=3) for _ in range(6000)])
    if start_from is None:
        _phase(vae, pool, rng, steps or 2300, lr=2e-3, object_weight=0.0)
        save_vae(vae, pool, output_dir)
    _phase(vae, pool, rng, steps or 1400, lr=1.5e-3, object_weight=3.0)
    save_vae(vae, pool, output_dir)


def _phase(
    vae: AutoencoderKL,
    pool: np.ndarray,
    rng: np.random.Generator,
    steps: int,
    lr: float,
    object_weight: float,
    batch_size: int = 16,
) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    started = time.monotonic()
    for step in range(steps):
        images = to_unit(pool[rng.integers(0, len(pool), batch_size)])
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = (decoded - images).abs() + (decoded - images).square()
        loss = (pixel_weights(images, object_weight) * error).mean()
        loss = loss + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"vae step {step} loss {loss.item():.4f} reconstruction {error.mean().item():.4f} "
                f"({time.monotonic() - started:.0f} s)",
                flush=True,
            )


@torch.no_grad()
def save_vae(vae: AutoencoderKL, images: np.ndarray, output_dir: Path) -> None:
    """Measure the latents' scale on up to 512 of the images and save the folder."""
    latents = torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in np.array_split(images[:512], 8)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(output_dir, safe_serialization=True)
