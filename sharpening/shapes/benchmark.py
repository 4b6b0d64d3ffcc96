"""The world's prompts: a benchmark of six categories as in T2I-CompBench, and training captions disjoint from it.

All are drawn from fixed seeds, so every installation has the same ones.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sharpening.shapes.captions import CATEGORIES, Claims, Fact, claims_about, facts_of, say
from sharpening.shapes.scene import Scene, held_out, random_scene


@dataclasses.dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt of the benchmark, its category and the facts a verifier checks."""

    prompt: str
    category: str
    facts: tuple[Fact, ...]


def draw_benchmark(seed: int, per_category: int, taken: set[str] | None = None) -> list[BenchmarkPrompt]:
    """Draw distinct prompts, the same number a category.

    Args:
        seed: seed of the draw.
        per_category: prompts in each of the six categories.
        taken: prompts that must not occur.

    Returns:
        Prompts in the order of `CATEGORIES`.
    """
    rng = np.random.default_rng([seed, 7])
    seen = set(taken or ())
    prompts: list[BenchmarkPrompt] = []
    for category in CATEGORIES:
        wanted = len(prompts) + per_category
        while len(prompts) < wanted:
            claims = claims_about(random_scene(rng), rng, category)
            if claims is None:
                continue
            text = say(claims, rng)
            if text not in seen:
                seen.add(text)
                prompts.append(BenchmarkPrompt(text, category, facts_of(claims)))
    return prompts


def draw_training_prompts(seed: int, count: int, excluded: set[str]) -> list[str]:
    """Draw distinct training captions: no held-out combination, none of the excluded prompts."""
    rng = np.random.default_rng([seed, 8])
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        text, _ = caption_for(training_scene(rng), rng, excluded)
        prompts[text] = None
    return list(prompts)


def training_scene(rng: np.random.Generator) -> Scene:
    """A random scene that shows no held-out combination."""
    while held_out(scene := random_scene(rng)):
        pass
    return scene


def caption_for(scene: Scene, rng: np.random.Generator, excluded: set[str]) -> tuple[str, Claims]:
    """A training caption of a scene.

    Half the captions are worded as the benchmark's categories are, half mention this and that.

    Args:
        scene: the scene to describe.
        rng: decides what is said and how.
        excluded: captions that must not occur (the benchmarks').

    Returns:
        The caption and what it claims.
    """
    while True:
        category = str(rng.choice(CATEGORIES)) if rng.random() < 0.5 else None
        claims = claims_about(scene, rng, category)
        if claims is None:
            continue
        text = say(claims, rng)
        if text not in excluded:
            return text, claims


def excluded_prompts() -> set[str]:
    """Every prompt of the benchmark and of the validation benchmark: no training caption may be one of them."""
    return {p.prompt for p in benchmark() + validation_benchmark()}


def benchmark() -> list[BenchmarkPrompt]:
    """The 600 prompts that results are reported on, 100 a category."""
    return draw_benchmark(seed=600, per_category=100)


def validation_benchmark() -> list[BenchmarkPrompt]:
    """300 other prompts, 50 a category: what settings are chosen on."""
    return draw_benchmark(seed=300, per_category=50, taken={p.prompt for p in benchmark()})
