"""Ways in which a picture is badly drawn, each with a strength: what the aesthetic head learns to rank by.

A strength of 0 leaves the picture as it is, 1 spoils it badly; of two strengths of one kind the weaker is the better
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy import ndimage

from sharpening.shapes.train_vae import to_unit

BLUR = 2.0
"""Gaussian blur in pixels at strength 1."""
NOISE = 50.0
"""Standard deviation of the noise in grey levels at strength 1."""
GHOST_SHIFT = 8
"""Most pixels that a ghost is away, along each axis."""
PATTERN = 60.0
"""Half the contrast of a background's pattern in grey levels at strength 1."""
LATENT_NOISE = 0.8
"""Standard deviation of the noise on latents of unit variance at strength 1."""


def blurred(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian blur."""
    del rng
    return ndimage.gaussian_filter(image, (BLUR * strength, BLUR * strength, 0))


def noisy(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """White noise on every pixel and channel."""
    return image + rng.normal(0, NOISE * strength, image.shape).astype(np.float32)


def ghosted(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A fainter copy of the picture, some pixels away."""
    shift = rng.choice([-1, 1], 2) * rng.integers(3, GHOST_SHIFT + 1, 2)
    share = 0.5 * strength
    return (1 - share) * image + share * np.roll(image, shift, axis=(0, 1))


def patterned(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Stripes, at any angle, on a background that should be plain."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    wave = np.sign(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period))
    ground = np.abs(image - image[0, 0]).max(axis=2) < 8
    return image + (PATTERN * strength * wave * ground)[..., None].astype(np.float32)


PIXEL_KINDS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "blurred": blurred,
    "noisy": noisy,
    "ghosted": ghosted,
    "patterned": patterned,
}
"""Degradations of single pictures: float32 `[H, W, 3]` in grey levels to the same."""
KINDS = (*PIXEL_KINDS, "latent noise")
"""All degradations; the last passes the VAE."""


def degrade(
    images: np.ndarray, kinds: Sequence[str], strengths: np.ndarray, vae: AutoencoderKL, rng: np.random.Generator
) -> np.ndarray:
    """Spoil pictures, each in its own way.

    Args:
        images: uint8 `[N, 64, 64, 3]`.
        kinds: one of `KINDS` for each picture.
        strengths: `[N]`, 0 to 1.
        vae: decodes noisy latents, for the kind "latent noise".
        rng: draws noise, directions and patterns.

    Returns:
        uint8 `[N, 64, 64, 3]`.
    """
    spoilt = images.copy()
    for i, kind in enumerate(kinds):
        if kind in PIXEL_KINDS and strengths[i] > 0:
            drawn = PIXEL_KINDS[kind](images[i].astype(np.float32), float(strengths[i]), rng)
            spoilt[i] = np.clip(np.round(drawn), 0, 255).astype(np.uint8)
    latent = np.flatnonzero([kind not in PIXEL_KINDS for kind in kinds])
    for rows in np.array_split(latent, -(-len(latent) // 32) or 1):
        if len(rows):
            spoilt[rows] = with_latent_noise(vae, images[rows], LATENT_NOISE * strengths[rows], rng)
    return spoilt


@torch.no_grad()
def with_latent_noise(
    vae: AutoencoderKL, images: np.ndarray, amounts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Pictures decoded from their latents with noise on them.

    Args:
        vae: the world's VAE.
        images: uint8 `[N, 64, 64, 3]`.
        amounts: `[N]`, standard deviation of the noise in units of the latents' own; 0 is the plain reconstruction.
        rng: draws the noise.

    Returns:
        uint8 `[N, 64, 64, 3]`.
    """
    latents = vae.encode(to_unit(images)).latent_dist.mean
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    amount = torch.from_numpy(np.asarray(amounts, np.float32)).view(-1, 1, 1, 1) / vae.config.scaling_factor
    decoded = vae.decode(latents + amount * noise).sample
    return ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
