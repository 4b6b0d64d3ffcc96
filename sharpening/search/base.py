"""What a search at inference is: a budget of denoiser evaluations in, the best image found for each prompt out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sharpening.options.base import require
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn


class BudgetTooSmall(ValueError):
    """The budget does not pay for one image.

    Attributes:
        budget: what was given, denoiser evaluations an image.
        smallest: what one image needs.
    """

    def __init__(self, budget: int, smallest: int) -> None:
        """Name the smallest budget.

        Args:
            budget: what was given, denoiser evaluations an image.
            smallest: what one image needs.
        """
        super().__init__(f"a budget of {budget} NFE does not pay for one image; pass {smallest} or more")
        self.budget = budget
        self.smallest = smallest


def require_positive(options: object, *names: str) -> None:
    """Refuse options that are not finite numbers above 0.

    Args:
        options: whose attributes they are.
        *names: their names.

    Raises:
        OptionError: if one is not.
    """  # noqa: DOC502
    for name in names:
        value = getattr(options, name)
        require(math.isfinite(value) and value > 0, name, "must be a finite number; pass one above 0")


@dataclass(frozen=True)
class SearchOptions:
    """What every search is told about the sampler.

    Attributes:
        steps: sampler steps of an image.
        guidance_scale: classifier-free guidance; 1 is none. A guided evaluation counts as two.
    """

    steps: int = 12
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        require(self.steps >= 1, "steps", "is below 1; pass 1 or more")
        guided = math.isfinite(self.guidance_scale) and self.guidance_scale >= 0
        require(guided, "guidance_scale", "must be a finite number; pass 1 for no guidance")

    @property
    def prediction_nfe(self) -> int:
        """Denoiser evaluations that one prediction costs at most; the model itself knows (`Policy.prediction_nfe`)."""
        return 2 if self.guidance_scale > 1 else 1


@dataclass(frozen=True)
class SearchSeeds:
    """The counters a search's random numbers come from.

    Attributes:
        run_seed: the run's seed.
        indices: the place of each prompt in the whole list of prompts; a prompt's noise depends on its own alone.
    """

    run_seed: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class SearchResult:
    """The best image found for each of P prompts, and its price.

    Attributes:
        images: uint8 `[P, H, W, 3]`; black where the prompt is in `failures`.
        rewards: float64 `[P]`, rewards of these images in the reward's unit; NaN where the prompt is in `failures`.
        nfe: denoiser evaluations of the whole call, calls × images; the policy's own counter moved by as much.
        images_scored: images sent to the reward.
        seconds: time spent, by stage: denoise, decode, reward.
        failures: reason for each prompt without an image that could be scored, by its row.
        trace: for each prompt the reward of the best image so far against the evaluations spent on the prompt by
            then, (NFE, reward), whenever finished images were scored; empty where the prompt is in `failures`.
    """

    images: np.ndarray
    rewards: np.ndarray
    nfe: int
    images_scored: int
    seconds: dict[str, float]
    failures: dict[int, str]
    trace: list[list[tuple[int, float]]]


class Search(Protocol):
    """A search over the sampling of an unchanged model."""

    def search(
        self, policy: Policy, score: ScoreFn, prompts: Sequence[str], budget: int, seeds: SearchSeeds
    ) -> SearchResult:
        """Find a good image for each prompt within `budget` denoiser evaluations an image."""
