"""Rewards: scorers of images against their prompts, each one callable and free of any serving."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from sharpening.rewards.base import RewardModelError, RewardUnavailable, ScoreFn, Scores

__all__ = ["REWARDS", "RewardModelError", "RewardUnavailable", "ScoreFn", "Scores", "load_reward", "reward_class"]

REWARDS: dict[str, str] = {
    "clip": "sharpening.rewards.clip:ClipScorer",
    "aesthetic": "sharpening.rewards.aesthetic:AestheticScorer",
    "pickscore": "sharpening.rewards.pickscore:PickScorer",
    "hpsv2": "sharpening.rewards.hpsv2:HpsScorer",
    "image_reward": "sharpening.rewards.image_reward:ImageRewardScorer",
    "compositional": "sharpening.rewards.compositional:CompositionalScorer",
    "embedded-aesthetic": "sharpening.rewards.embedded:AestheticScorer",
    "embedded-preference": "sharpening.rewards.embedded:PreferenceScorer",
    "embedded-attribute": "sharpening.rewards.embedded:AttributeScorer",
    "embedded-spatial": "sharpening.rewards.embedded:SpatialScorer",
    "embedded-non_spatial": "sharpening.rewards.embedded:NonSpatialScorer",
    "embedded-compositional": "sharpening.rewards.embedded:CompositionalScorer",
    "embedded-verifier": "sharpening.rewards.verifier:VerifierScorer",
    "grader": "sharpening.rewards.grader.scorer:GraderScorer",
    "http": "reward_servers.http_client:HttpScore",
}
"""Import path of each scorer's class, by the name users give it."""


def reward_class(name: str) -> Callable[..., ScoreFn]:
    """Import a scorer's class.

    Args:
        name: a name in `REWARDS`, or the import path `module:attribute` of a scorer's class.

    Returns:
        The class.

    Raises:
        ValueError: if there is no such scorer.
    """
    path = REWARDS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ValueError(f"unknown reward '{name}'; choose one of {', '.join(REWARDS)}, or pass module:class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the reward '{path}' cannot be imported ({error}); pass the path of an installed one"
        ) from error


def load_reward(name: str, **options: Any) -> ScoreFn:
    """Make a scorer.

    Args:
        name: a name in `REWARDS`, or the import path `module:attribute` of a scorer's class.
        **options: keyword arguments of that class.

    Returns:
        The scorer, a callable.

    Raises:
        ValueError: if there is no such scorer.
    """  # noqa: DOC502
    return reward_class(name)(**options)
