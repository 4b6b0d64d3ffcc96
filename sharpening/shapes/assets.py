"""Where the embedded world's models and prompts are. Imports no torch: command lines ask for the folders."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sharpening.shapes.benchmark import (
    BenchmarkPrompt,
    benchmark,
    draw_training_prompts,
    excluded_prompts,
    validation_benchmark,
)

__all__ = [
    "BenchmarkPrompt",
    "benchmark",
    "clip_folder",
    "heads_folder",
    "pipeline_folder",
    "training_prompts",
    "validation_benchmark",
]

_ASSETS = Path(__file__).parent / "assets"


def pipeline_folder() -> Path:
    """The tiny SDXL: a `StableDiffusionXLPipeline` folder (`python -m sharpening.shapes.train sdxl`)."""
    return _ASSETS / "pipeline"


def clip_folder() -> Path:
    """The tiny CLIP, in open_clip's `local-dir:` layout (`python -m sharpening.shapes.train clip`)."""
    return _ASSETS / "clip"


def heads_folder() -> Path:
    """The reward heads on the tiny CLIP (`python -m sharpening.shapes.train heads`)."""
    return _ASSETS / "heads"


@lru_cache(maxsize=1)
def training_prompts(count: int = 4000) -> list[str]:
    """Distinct training captions: none is a benchmark prompt, none shows a held-out combination.

    Args:
        count: how many.

    Returns:
        The prompts, always the same ones.
    """
    return draw_training_prompts(seed=0, count=count, excluded=excluded_prompts())
