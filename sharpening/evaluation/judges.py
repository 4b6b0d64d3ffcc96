"""Everything that has an opinion on an image of the embedded world, asked at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sharpening.evaluation.summary import judged
from sharpening.rewards import load_reward
from sharpening.rewards.base import ScoreFn
from sharpening.rewards.clip import ClipScorer
from sharpening.shapes.benchmark import BenchmarkPrompt
from sharpening.shapes.scene import IMAGE_SIZE
from sharpening.shapes.verifiers import verify

WATCHED = {"aesthetic": "embedded-aesthetic", "preference": "embedded-preference"}
"""Learnt judges beside the reward, by the column of the comparison they fill."""


class Judges:
    """CLIP reward, verifiers, and the learnt judges of `WATCHED`; none of them depends on an image's neighbours."""

    def __init__(self) -> None:
        """Load the models."""
        self._clip = ClipScorer()
        self._watched = {column: load_reward(name) for column, name in WATCHED.items()}

    def judge(self, images: np.ndarray, prompts: Sequence[BenchmarkPrompt]) -> list[dict[str, Any]]:
        """Judge images.

        Args:
            images: uint8 `[N, H, W, 3]`.
            prompts: the benchmark's prompts they were drawn for.

        Returns:
            For each image its columns: `clip`, `facts`, `all`, and those of `WATCHED`; `None` where a judge failed.
            The verifiers say nothing about images of another size than the embedded world's.
        """
        texts = [prompt.prompt for prompt in prompts]
        scorers: dict[str, ScoreFn] = {"clip": self._clip, **self._watched}
        scored = {column: scorer(images, texts) for column, scorer in scorers.items()}
        verifiable = images.shape[1:3] == (IMAGE_SIZE, IMAGE_SIZE)
        rows = []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            row = {name: None if i in s.failures else float(s.values[i]) for name, s in scored.items()}
            facts = judged(row["clip"], verify(image, prompt.facts) if verifiable else None)
            rows.append(row | {"facts": facts["facts"], "all": facts["all"]})
        return rows

    def features(self, images: np.ndarray) -> Float[np.ndarray, "image feature"]:
        """CLIP embeddings of images.

        Args:
            images: uint8 `[N, H, W, 3]`.

        Returns:
            float64, each of length 1.
        """
        return self._clip.embed(images)
