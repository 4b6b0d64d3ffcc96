"""Ranked images of three sources: scenes that differ in one respect, pictures drawn badly, and the base's samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from diffusers import AutoencoderKL

from sharpening.policies.base import Policy
from sharpening.sampling import sample
from sharpening.seeds import noise
from sharpening.shapes.benchmark import caption_for, training_scene
from sharpening.shapes.captions import facts_of
from sharpening.shapes.degradations import KINDS, degrade
from sharpening.shapes.parsing import parse
from sharpening.shapes.ranked_scenes import draw_pair
from sharpening.shapes.render import render
from sharpening.shapes.scene import Scene, held_out
from sharpening.shapes.verifiers import verify

FACTS = {
    "attribute": ("shape", "colour", "texture"),
    "spatial": ("relation",),
    "non_spatial": ("larger", "count"),
    "preference": ("shape", "colour", "texture", "relation", "larger", "count", "background"),
}
"""Kinds of facts by which a head's samples are ranked."""


@dataclasses.dataclass(frozen=True)
class RankedImages:
    """Images, captions, and which image is the better one under which caption.

    Attributes:
        images: uint8 `[I, 64, 64, 3]`.
        prompts: captions.
        pairs: (row of the better image, row of the other, row of the caption).
    """

    images: np.ndarray
    prompts: list[str]
    pairs: list[tuple[int, int, int]]


def ranked_renders(
    respect: str,
    count: int,
    rng: np.random.Generator,
    excluded: set[str],
    vae: AutoencoderKL | None = None,
    allowed: Callable[[Scene], bool] = lambda scene: not held_out(scene),
) -> RankedImages:
    """Renders of scenes that differ in one respect.

    Args:
        respect: one of `ranked_scenes.RESPECTS`.
        count: pairs of scenes.
        rng: draws everything.
        excluded: captions that must not occur.
        vae: None leaves renders clean; else both pictures of half the pairs are spoilt a little, in the same way.
        allowed: which scenes may occur.

    Returns:
        `2 count` images, and one pair for each caption.
    """
    images, kinds, strengths = [], [], []
    prompts: dict[str, int] = {}
    pairs: list[tuple[int, int, int]] = []
    for i in range(count):
        drawn = draw_pair(respect, rng, excluded, allowed=allowed)
        images += [render(scene, supersample=3) for scene in drawn.scenes]
        kinds += [str(rng.choice(KINDS))] * 2
        strengths += [rng.uniform(0, 0.5) * (rng.random() < 0.5)] * 2
        for side, captions in enumerate(drawn.captions):
            pairs += [(2 * i + side, 2 * i + 1 - side, prompts.setdefault(text, len(prompts))) for text in captions]
    stacked = np.stack(images)
    if vae is not None:
        plain = ["blurred" if strength == 0 else kind for kind, strength in zip(kinds, strengths, strict=True)]
        stacked = degrade(stacked, plain, np.array(strengths), vae, rng)
    return RankedImages(stacked, list(prompts), pairs)


def ranked_degradations(count: int, rng: np.random.Generator, excluded: set[str], vae: AutoencoderKL) -> RankedImages:
    """Pictures drawn well or a little badly, before others drawn worse.

    The better one is clean in half the pairs, as rendered or passed through the VAE; else both are spoilt in one way.
    The worse one shows the same scene in half the pairs.

    Args:
        count: pairs.
        rng: draws everything.
        excluded: captions that must not occur.
        vae: the world's VAE.

    Returns:
        `2 count` images; the captions are true of the better ones.
    """
    scenes = [training_scene(rng) for _ in range(2 * count)]
    for i in range(0, 2 * count, 4):
        scenes[i + 1] = scenes[i]
    kinds = [str(rng.choice(KINDS)) for _ in range(2 * count)]
    strengths = np.zeros(2 * count)
    for better in range(0, 2 * count, 2):
        if rng.random() < 0.5:
            kinds[better] = "latent noise" if rng.random() < 0.5 else "blurred"
        else:
            kinds[better], strengths[better] = kinds[better + 1], rng.uniform(0, 0.6)
        strengths[better + 1] = strengths[better] + rng.uniform(0.25, 1) * (1 - strengths[better])
    images = degrade(np.stack([render(scene, supersample=3) for scene in scenes]), kinds, strengths, vae, rng)
    prompts = [caption_for(scene, rng, excluded)[0] for scene in scenes[::2]]
    return RankedImages(images, prompts, [(2 * i, 2 * i + 1, i) for i in range(count)])


def ranked_samples(
    policy: Policy, prompts: Sequence[str], seed: int, per_prompt: int = 4, steps: int = 12, batch_size: int = 64
) -> dict[str, RankedImages]:
    """The policy's own unguided samples, ranked by the verifiers' share of facts of a head's kinds.

    Args:
        policy: the model that draws.
        prompts: captions of the grammar.
        seed: seed of the initial noise.
        per_prompt: samples of each.
        steps: sampler steps.
        batch_size: images drawn at once.

    Returns:
        For each head of `FACTS` its pairs: any two samples of a prompt with unequal shares. All share the images.
    """
    repeated = [prompt for prompt in prompts for _ in range(per_prompt)]
    parts = []
    for start in range(0, len(repeated), batch_size):
        rows = range(start, min(start + batch_size, len(repeated)))
        initial = torch.stack([noise(policy.latent_shape, seed, "ranked samples", row) for row in rows])
        condition = policy.encode([repeated[row] for row in rows])
        parts.append(policy.decode(sample(policy, condition, initial, steps)))
    images = np.concatenate(parts)
    return {head: RankedImages(images, list(prompts), _ranking(images, prompts, FACTS[head])) for head in FACTS}


def _ranking(images: np.ndarray, prompts: Sequence[str], kinds: Sequence[str]) -> list[tuple[int, int, int]]:
    per_prompt, pairs = len(images) // len(prompts), []
    for caption, prompt in enumerate(prompts):
        claims = parse(prompt)
        facts = facts_of(claims) if claims is not None else ()
        rows = range(caption * per_prompt, (caption + 1) * per_prompt)
        answers = {row: verify(images[row], facts) for row in rows}
        right = {row: sum(a for a, f in zip(answers[row], facts, strict=True) if f.kind in kinds) for row in rows}
        for one, other in combinations(rows, 2):
            if right[one] != right[other]:
                better, worse = (one, other) if right[one] > right[other] else (other, one)
                pairs.append((better, worse, caption))
    return pairs
