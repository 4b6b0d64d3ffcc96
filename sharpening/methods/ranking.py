"""Preference pairs for offline methods: a model's own images of a prompt, the best and the worst by a reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sharpening.data.source import Batch
from sharpening.methods.base import Seeds
from sharpening.methods.collecting import Stopwatch, precision, score_images
from sharpening.options import MethodOptions
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn
from sharpening.sampling import sample
from sharpening.seeds import noise


@dataclass(frozen=True)
class RankedPairs:
    """Best and worst image of each prompt that could be ranked.

    Attributes:
        batch: the pairs, `k = 2`: the preferred image, then the other.
        slots: their slots.
        rewards: rewards of the two, in the reward's unit.
        ties: slots of prompts left out because all their images score the same.
        dropped: (slot, reason) of each prompt left out because an image of it failed to score.
        nfe: denoiser evaluations spent.
        images_scored: images sent to the reward.
        seconds: time spent, by stage.
    """

    batch: Batch
    slots: list[int]
    rewards: Float[np.ndarray, "pair 2"]
    ties: list[int]
    dropped: list[tuple[int, str]]
    nfe: int
    images_scored: int
    seconds: dict[str, float]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows as `sharpening.data.pairs.write_pairs` takes them.

        Yields:
            Caption, preferred image and other image (uint8 `[H, W, 3]`), and the rewards of both.
        """
        for prompt, (image_w, image_l), (reward_w, reward_l) in zip(
            self.batch.prompts, self.batch.images, self.rewards.tolist(), strict=True
        ):
            yield {
                "caption": prompt,
                "image_w": image_w,
                "image_l": image_l,
                "reward_w": reward_w,
                "reward_l": reward_l,
            }


@torch.no_grad()
def rank_pairs(
    policy: Policy, score: ScoreFn, prompts: Sequence[str], seeds: Seeds, samples: int, options: MethodOptions
) -> RankedPairs:
    """Draw images of each prompt, score them, keep the best and the worst.

    All images are drawn in one batch; a prompt's pair depends on its slot alone, so that a long list may be ranked in
    pieces.

    Args:
        policy: the model whose images are ranked.
        score: the reward; called once.
        prompts: P prompts.
        seeds: counters of all random numbers; one slot a prompt.
        samples: images a prompt, at least 2.
        options: say how images are sampled (steps, guidance, precision).

    Returns:
        The pairs, in the order of their prompts.

    Raises:
        ValueError: if prompts and slots differ in number, there are fewer than 2 samples, or the reward answers for
            another number of images.
    """
    if len(prompts) != len(seeds.slots):
        raise ValueError(f"{len(prompts)} prompts came with {len(seeds.slots)} slots")
    if samples < 2:
        raise ValueError(f"{samples} images a prompt make no pair; pass 2 or more samples")
    clock, spent = Stopwatch(policy.device), policy.nfe
    draws = [
        noise(policy.latent_shape, seeds.run_seed, "ranking", seeds.update, slot, k)
        for slot in seeds.slots
        for k in range(samples)
    ]
    with clock("generate"):
        condition = policy.encode(prompts).repeat_interleave(samples)
        with precision(options, policy.device):
            x0 = sample(policy, condition, torch.stack(draws), options.rollout_steps, options.guidance_scale)
    with clock("decode"), precision(options, policy.device):
        images = policy.decode(x0)
    with clock("reward"):
        owner = torch.arange(len(prompts)).repeat_interleave(samples)
        values, failed = score_images(score, images, prompts, owner)
    rewards = values.view(-1, samples).numpy()
    best, worst = rewards.argmax(1), rewards.argmin(1)
    scored = [b for b in range(len(prompts)) if b not in failed]
    kept = [b for b in scored if rewards[b, best[b]] > rewards[b, worst[b]]]
    pairs = np.stack([best, worst], axis=1)[kept]
    rows = np.asarray(kept, dtype=np.intp)[:, None]
    return RankedPairs(
        batch=Batch([prompts[b] for b in kept], images.reshape(-1, samples, *images.shape[1:])[rows, pairs]),
        slots=[seeds.slots[b] for b in kept],
        rewards=rewards[rows, pairs],
        ties=[seeds.slots[b] for b in scored if b not in kept],
        dropped=[(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
        nfe=policy.nfe - spent,
        images_scored=len(images),
        seconds=clock.seconds,
    )
