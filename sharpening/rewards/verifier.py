"""The embedded world's exact verifiers as a reward: the share of a prompt's facts that an image shows.

They judge the comparisons; a method that is trained on this reward has seen its judge. It is meant for upper bounds,
for debugging, and for measuring what other rewards miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sharpening.rewards.base import Scores
from sharpening.rewards.requests import check_request
from sharpening.shapes.captions import Fact, facts_of
from sharpening.shapes.parsing import parse
from sharpening.shapes.verifiers import verify


class VerifierScorer:
    """Share of right facts, 0 to 1, of prompts that the world's grammar can word.

    A prompt that it cannot word has no facts, and its images no score: they fail as "rejected".
    """

    def __init__(self, device: str = "cpu", batch_size: int = 32) -> None:
        """Nothing is loaded.

        Args:
            device: taken as every scorer takes it; verifiers run on the CPU.
            batch_size: taken as every scorer takes it; each image is judged by itself.
        """
        del device, batch_size
        self._facts = lru_cache(maxsize=16_384)(facts_in)

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts; see `score`."""
        return self.score(images, prompts)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, 64, 64, 3]`, RGB.
            prompts: N prompts.

        Returns:
            float32 `[N]`, share of the prompt's facts that hold; NaN where the prompt cannot be read
            (`failures[i] == "rejected"`).

        Raises:
            ValueError: if the arguments have other shapes or types.
        """  # noqa: DOC502
        check_request(images, prompts)
        facts = [self._facts(prompt) for prompt in prompts]
        judged = zip(images, facts, strict=True)
        shares = [np.mean(verify(image, known)) if known else np.nan for image, known in judged]
        return Scores(np.array(shares, np.float32), {i: "rejected" for i, known in enumerate(facts) if not known})


def facts_in(prompt: str) -> tuple[Fact, ...]:
    """The facts that a prompt implies.

    Args:
        prompt: any text.

    Returns:
        Its facts, none where the grammar has no such caption.
    """
    claims = parse(prompt)
    return () if claims is None else facts_of(claims)
