"""Trains the embedded world's CLIP: `python -m sharpening.shapes.train clip --output_dir DIR`.

A real `open_clip` model (a small ResNet, a small text transformer), contrastive over captions, with near misses of
every caption as extra negatives (`captions.corrupt`; NegCLIP, Yuksekgonul et al., arXiv 2210.01936), so that it can
tell shapes, swapped colours and relations apart. The image tower also learns to name what it sees, which fades out.
Images are blurred, made noisy, or passed through the VAE with noise on their latents: the reward is asked about clean
images predicted from noisy latents.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sharpening.rewards.lean_open_clip import open_clip
from sharpening.shapes.benchmark import caption_for, excluded_prompts, training_scene
from sharpening.shapes.captions import corrupt, say
from sharpening.shapes.clip_folder import save_clip_folder
from sharpening.shapes.render import render
from sharpening.shapes.scene import COLOURS, IMAGE_SIZE, SHAPES, TEXTURES, Scene
from sharpening.shapes.tokenizer import build_tokenizer
from sharpening.shapes.train_vae import to_unit

MISSES = 3
"""Near misses a caption."""
CLIP_CONTEXT_LENGTH = 24
"""Tokens: the grammar's longest caption has 21."""
ATTRIBUTES = 152
"""Bits of `attributes`: 8 colours × 4 shapes, 3 textures × 4 shapes, 9 places × 4 shapes, 9 places × 8 colours."""
MAX_LOGIT_SCALE = 25.0
"""Keeps cosines spread out: at CLIP's usual 100 every pair would score within a point of the next."""


def clip_config(vocab_size: int) -> dict:
    """open_clip's `model_cfg` of the shipped model."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CLIP_CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, wrong: torch.Tensor, same: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE with the near misses of all captions among the image's negatives.

    Args:
        image: unit image embeddings `[B, D]`.
        text: unit embeddings of the true captions `[B, D]`.
        wrong: unit embeddings of the near misses `[M, D]`.
        same: bool `[B, B + M]`, True where another column's caption is word for word the row's own.
        scale: logit scale, scalar.

    Returns:
        Scalar loss.
    """
    logits = scale * image @ torch.cat([text, wrong]).T
    target = torch.arange(len(image))
    per_image = F.cross_entropy(logits.masked_fill(same, -1e4), target)
    per_text = F.cross_entropy(logits[:, : len(image)].T.masked_fill(same[:, : len(image)], -1e4), target)
    return (per_image + per_text) / 2


def attributes(scene: Scene) -> np.ndarray:
    """What a picture shows, as a multi-hot vector: colour, texture and side of the image, each bound to its shape.

    Args:
        scene: the scene.

    Returns:
        float32 `[ATTRIBUTES]`.
    """
    bits = np.zeros(ATTRIBUTES, np.float32)
    for thing in scene.things:
        shape = SHAPES.index(thing.shape)
        horizontal = 0 if thing.x < IMAGE_SIZE / 2 - 8 else 1 if thing.x > IMAGE_SIZE / 2 + 8 else 2
        vertical = 0 if thing.y < IMAGE_SIZE / 2 - 8 else 1 if thing.y > IMAGE_SIZE / 2 + 8 else 2
        colour, place = list(COLOURS).index(thing.colour), 3 * vertical + horizontal
        bits[[colour * 4 + shape, 32 + TEXTURES.index(thing.texture) * 4 + shape]] = 1
        bits[[44 + place * 4 + shape, 80 + place * 8 + colour]] = 1
    return bits


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur a third of the images and add noise to another third; `[B, 3, H, W]` in [-1, 1]."""
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    noisy = images + 0.15 * torch.randn(images.shape, generator=generator)
    pick = torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.where(pick < 1 / 3, blurred, torch.where(pick < 2 / 3, noisy, images)).clamp(-1, 1)


@torch.no_grad()
def through_vae(vae: AutoencoderKL, images: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """The images after the VAE, up to half a standard deviation of noise on their latents; uint8 `[B, H, W, 3]`."""
    latents = vae.encode(to_unit(images)).latent_dist.mean
    amount = 0.5 * torch.rand(len(latents), 1, 1, 1, generator=generator) / vae.config.scaling_factor
    decoded = vae.decode(latents + amount * torch.randn(latents.shape, generator=generator)).sample
    return ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def train_clip(
    output_dir: Path,
    vae_dir: Path,
    steps: int = 2000,
    batch_size: int = 96,
    lr: float = 1.5e-3,
    seed: int = 0,
    pool_size: int = 20000,
) -> None:
    """Train the CLIP model on random scenes and save it in open_clip's own folder layout.

    Args:
        output_dir: receives `open_clip_config.json`, the weights and the tokenizer.
        vae_dir: folder of the trained VAE, which every other picture passes through.
        steps: optimiser steps; one cycle of the learning rate.
        batch_size: pictures a step.
        lr: peak learning rate.
        seed: seed of weights, scenes and captions.
        pool_size: scenes to draw from.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng([seed, 2])
    excluded = excluded_prompts()
    vae = AutoencoderKL.from_pretrained(vae_dir).eval()
    scenes = [training_scene(rng) for _ in range(pool_size)]
    images = np.stack([render(scene, supersample=3) for scene in scenes])
    for start in range(0, pool_size // 2, 16):
        images[start : start + 16] = through_vae(vae, images[start : start + 16], generator)
    tokenizer = build_tokenizer([caption_for(scene, rng, set())[0] for scene in scenes])
    config = clip_config(len(tokenizer))
    model = open_clip.CLIP(**config)
    # Without it shapes stay unlearnt for a long time: neither tower can use what the other does not say yet.
    teacher = torch.nn.Linear(config["embed_dim"], ATTRIBUTES)
    shown = torch.from_numpy(np.stack([attributes(scene) for scene in scenes]))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    plain += list(teacher.parameters())
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        rows = rng.choice(pool_size, batch_size, replace=False)
        captions, misses = [], []
        for row in rows:
            caption, claims = caption_for(scenes[row], rng, excluded)
            captions.append(caption)
            misses += [say(corrupt(claims, rng), rng) for _ in range(MISSES)]
        both = captions + misses
        tokens = tokenizer(
            both, padding="max_length", truncation=True, max_length=CLIP_CONTEXT_LENGTH, return_tensors="pt"
        ).input_ids
        same = np.array(both)[None, :] == np.array(captions)[:, None]
        same[np.arange(batch_size), np.arange(batch_size)] = False
        features = model.encode_image(degrade(to_unit(images[rows]), generator))
        image = F.normalize(features, dim=-1)
        text, wrong = F.normalize(model.encode_text(tokens), dim=-1).split([batch_size, MISSES * batch_size])
        contrast = contrastive_loss(image, text, wrong, torch.from_numpy(same), model.logit_scale.exp())
        named = F.binary_cross_entropy_with_logits(teacher(features), shown[rows]) * ATTRIBUTES / 4
        loss = contrast + named * max(0.0, 1 - step / (0.8 * steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
        if step % 50 == 0 or step == steps - 1:
            right = (image * text).sum(-1)
            near = torch.einsum("bd,bmd->bm", image, wrong.view(batch_size, MISSES, -1))
            wins = (right[:, None] > near).float().mean()
            print(
                f"clip step {step} loss {contrast.item():.4f} named {named.item():.4f} "
                f"true pairs {100 * right.mean().item():.1f} right before near miss {wins.item():.3f} "
                f"({time.monotonic() - started:.0f} s)",
                flush=True,
            )
        if (step + 1) % 300 == 0 or step == steps - 1:
            preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
            save_clip_folder(model, config, preprocess, tokenizer, output_dir)
