"""Candidates and their rewards: what could not be scored is never chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sharpening.rewards.base import ScoreFn


@dataclass(frozen=True)
class Scored:
    """K candidates of each of P prompts.

    Attributes:
        images: uint8 `[P, K, H, W, 3]`.
        rewards: in the reward's unit; 0 where there is no score.
        valid: which candidates have a score.
        reasons: why the others have none, by (prompt, candidate).
    """

    images: np.ndarray
    rewards: Float[Tensor, "prompt candidate"]
    valid: Bool[Tensor, "prompt candidate"]
    reasons: dict[tuple[int, int], str]

    def top(self, count: int) -> Int[Tensor, "prompt count"]:
        """The best candidates of each prompt; one without a score only where the prompt has none with one.

        Args:
            count: how many, at most K; where fewer have a score, the best of them is repeated.

        Returns:
            Candidate numbers, the best first; 0, 1, … where no candidate has a score.
        """
        ranked = self.rewards.masked_fill(~self.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        ranked = ranked[:, :count]
        usable = self.valid.gather(1, ranked)
        repeated = torch.where(usable, ranked, ranked[:, :1])
        return torch.where(self.valid.any(1, keepdim=True), repeated, torch.arange(ranked.shape[1]))


def score_candidates(score: ScoreFn, images: np.ndarray, prompts: Sequence[str]) -> Scored:
    """Score the candidates of all prompts in one call.

    Args:
        score: the reward.
        images: uint8 `[P·K, H, W, 3]`, a prompt's candidates in a row.
        prompts: the P prompts.

    Returns:
        The candidates by prompt; a reward that is not finite is a failure as well.

    Raises:
        ValueError: if the reward answers for another number of images.
    """
    count = len(images) // len(prompts)
    scores = score(images, [prompt for prompt in prompts for _ in range(count)])
    values = np.asarray(scores.values, dtype=np.float64)
    if values.shape != (len(images),):
        raise ValueError(f"the reward answered with shape {values.shape} for {len(images)} images")
    failures = {int(i): "not finite" for i in np.flatnonzero(~np.isfinite(values))} | scores.failures
    valid = np.ones(len(images), dtype=bool)
    valid[list(failures)] = False
    return Scored(
        images=images.reshape(len(prompts), count, *images.shape[1:]),
        rewards=torch.from_numpy(np.where(valid, values, 0.0)).view(len(prompts), count),
        valid=torch.from_numpy(valid).view(len(prompts), count),
        reasons={divmod(image, count): reason for image, reason in failures.items()},
    )
