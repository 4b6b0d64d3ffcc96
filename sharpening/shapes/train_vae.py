"""Trains the embedded world's VAE: `python -m sharpening.shapes.train vae --output_dir DIR`.

`AutoencoderKL`, 64x64 RGB -> 8x8x8 latents. L1 + L2 + 1e-3 KL, AdamW, three phases (`train_vae`).
About 30 minutes on 2 cores.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from sharpening.shapes.render import render
from sharpening.shapes.scene import IMAGE_SIZE, LARGE_RADIUS, SMALL_RADIUS, Scene, random_scene

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


def crowded_scene(rng: np.random.Generator, things: int = 7) -> Scene:
    """A scene of many things, some over others: more to learn from a picture than one or two on an empty ground.

    Half of the things are dotted, for dots are learnt last.
    """
    drawn = [random_scene(rng, count=1) for _ in range(things)]
    radii = rng.uniform(SMALL_RADIUS[0], LARGE_RADIUS[1], things)
    centres = rng.uniform(4, IMAGE_SIZE - 4, (things, 2))
    return Scene(
        tuple(
            dataclasses.replace(
                scene.things[0],
                texture="dotted" if place % 2 else scene.things[0].texture,
                x=float(x),
                y=float(y),
                radius=float(radius),
            )
            for place, (scene, (x, y), radius) in enumerate(zip(drawn, centres, radii, strict=True))
        ),
        drawn[0].background,
    )


def edge_error(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean L1 between the two pictures' differences of neighbouring pixels, across and down.

    What a texture is made of; a mean over pixels alone is content with stripes where there should be dots
    (gradient difference loss, Mathieu et al., arXiv 1511.05440).
    """
    error = decoded - images
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def train_vae(
    output_dir: Path, start_from: Path | None = None, start_phase: int = 0, seed: int = 0, steps: int | None = None
) -> None:
    """Train the VAE on random scenes and save it with its measured latent scale after every phase.

    The first phase learns pictures as they are; the second, whose pixels of things weigh four times as much, their
    colours, which a plain mean over a mostly empty picture leaves blurred; the third, on crowded scenes and with
    `edge_error`, their outlines and textures.

    Args:
        output_dir: receives the folder; the saved `scaling_factor` makes latents of unit variance.
        start_from: a folder this function saved; None starts anew.
        start_phase: phases that the `start_from` folder has had: 0, 1 or 2.
        seed: seed of weights and scenes.
        steps: steps of each phase; None means the shipped model's.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    vae = build_vae() if start_from is None else AutoencoderKL.from_pretrained(start_from)
    pool = np.stack([render(random_scene(rng), supersample=3) for _ in range(6000)])
    if start_phase < 1:
        _phase(vae, pool, rng, steps or 2300, lr=2e-3, object_weight=0.0)
        save_vae(vae, pool, output_dir)
    if start_phase < 2:
        _phase(vae, pool, rng, steps or 1400, lr=1.5e-3, object_weight=3.0)
        save_vae(vae, pool, output_dir)
    crowded = np.stack([render(crowded_scene(rng), supersample=3) for _ in range(6000)])
    both = np.concatenate([pool[: len(crowded) // 3], crowded])
    _phase(vae, both, rng, steps or 4200, lr=1.5e-3, object_weight=0.0, edge_weight=2.0)
    save_vae(vae, pool, output_dir)


def _phase(
    vae: AutoencoderKL,
    pool: np.ndarray,
    rng: np.random.Generator,
    steps: int,
    lr: float,
    object_weight: float,
    edge_weight: float = 0.0,
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
        if edge_weight:
            loss = loss + edge_weight * edge_error(decoded, images)
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
