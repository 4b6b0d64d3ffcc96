"""Trains reward heads on ranked pairs of images: pairwise cross-entropy, on features read once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.data.source import Batch
from sharpening.shapes.reward_heads import RewardHead

if TYPE_CHECKING:
    from sharpening.rewards.embedded import FeatureReader

CENTRING = 0.003
"""Weight of the squared mean logit of a pair: cross-entropy leaves open how captions compare to one another."""


@dataclasses.dataclass(frozen=True)
class Preferences:
    """P ranked pairs over I images and T captions, as heads read them; rows refer to images and captions.

    Attributes:
        images: `image_features`.
        tokens: `text_tokens`.
        winner: row of the better image.
        loser: row of the other.
        caption: row of the caption that both are judged under.
    """

    images: Float[Tensor, "image feature"]
    tokens: Float[Tensor, "caption token width"]
    winner: Int[Tensor, " pair"]
    loser: Int[Tensor, " pair"]
    caption: Int[Tensor, " pair"]

    def __len__(self) -> int:
        """Number of pairs P."""
        return len(self.winner)

    def ranked_by(self, pairs: Sequence[tuple[int, int, int]]) -> Preferences:
        """The same images and captions, ranked otherwise.

        Args:
            pairs: (row of the better image, row of the other, row of the caption).

        Returns:
            The preferences.
        """
        winner, loser, caption = torch.tensor(pairs, dtype=torch.long).view(-1, 3).unbind(1)
        return dataclasses.replace(self, winner=winner, loser=loser, caption=caption)

    @staticmethod
    def cat(parts: Sequence[Preferences]) -> Preferences:
        """Several sets of pairs as one.

        Args:
            parts: at least one.

        Returns:
            All pairs, in the order given.
        """
        images = np.cumsum([0, *(len(part.images) for part in parts)]).tolist()
        captions = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
        return Preferences(
            torch.cat([part.images for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.winner + start for part, start in zip(parts, images, strict=False)]),
            torch.cat([part.loser + start for part, start in zip(parts, images, strict=False)]),
            torch.cat([part.caption + start for part, start in zip(parts, captions, strict=False)]),
        )


def read_preferences(
    reader: FeatureReader, images: np.ndarray, prompts: Sequence[str], pairs: Sequence[tuple[int, int, int]]
) -> Preferences:
    """Read the features of ranked images.

    Args:
        reader: the CLIP.
        images: uint8 `[I, H, W, 3]`.
        prompts: captions.
        pairs: (row of the better image, row of the other, row of the caption).

    Returns:
        The preferences, on the CPU.
    """
    none = torch.zeros(0, dtype=torch.long)
    return Preferences(reader.image_rows(images), reader.token_rows(prompts), none, none, none).ranked_by(pairs)


def fit(
    head: RewardHead,
    preferences: Preferences,
    steps: int,
    seed: int,
    lr: float = 4e-3,
    batch_size: int = 96,
    weight_decay: float = 0.01,
) -> None:
    """Train a head in place: AdamW on `−log σ(r_winner − r_loser)`, one cycle of the learning rate.

    The head's scale stays as it is.

    Args:
        head: the head.
        preferences: at least one pair.
        steps: optimiser steps.
        seed: seed of the batches.
        lr: peak learning rate.
        batch_size: pairs a step, drawn with replacement.
        weight_decay: AdamW's.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter.requires_grad_(True) for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(preferences), (batch_size,), generator=generator)
            better, worse = pair_logits(head, preferences, rows)
            loss = F.softplus(worse - better).mean() + CENTRING * ((better + worse) / 2).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    head.requires_grad_(False)


def pair_logits(
    head: RewardHead, preferences: Preferences, rows: Int[Tensor, " row"]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Logits of both images of some pairs.

    Args:
        head: the head.
        preferences: the pairs.
        rows: which of them.

    Returns:
        Logits of the better image and of the other.
    """
    device = head.scale.device
    text = head.read(preferences.tokens[preferences.caption[rows]].to(device, torch.float32))
    better, worse = (preferences.images[side[rows]].to(device) for side in (preferences.winner, preferences.loser))
    return head.logits(better, text), head.logits(worse, text)


@torch.no_grad()
def all_logits(
    head: RewardHead, preferences: Preferences, batch_size: int = 512
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Logits of both images of all pairs.

    Args:
        head: the head.
        preferences: at least one pair.
        batch_size: pairs of a pass.

    Returns:
        Logits of the better images and of the others.
    """
    parts = [pair_logits(head, preferences, rows) for rows in torch.arange(len(preferences)).split(batch_size)]
    return torch.cat([better for better, _ in parts]), torch.cat([worse for _, worse in parts])


def accuracy(head: RewardHead, preferences: Preferences) -> float:
    """Share of pairs whose better image has the higher reward; a tie counts as wrong."""
    better, worse = all_logits(head, preferences)
    return (better > worse).float().mean().item()


def retrain(
    heads: Mapping[str, RewardHead], reader: FeatureReader, pairs: Batch, steps: int, seed: int, lr: float = 5e-4
) -> dict[str, RewardHead]:
    """Copies of heads, trained further on ranked images (IterComp's outer loop, arXiv 2410.07171).

    Args:
        heads: by name; they stay as they are.
        reader: the CLIP that they read from.
        pairs: preference pairs, `k = 2`: the better image, then the other; the same for every head.
        steps: optimiser steps of each head.
        seed: seed of the batches.
        lr: peak learning rate.

    Returns:
        The copies, frozen, on the scale of the originals.
    """
    rows = [(2 * i, 2 * i + 1, i) for i in range(len(pairs))]
    preferences = read_preferences(reader, pairs.images.reshape(-1, *pairs.images.shape[2:]), pairs.prompts, rows)
    copies = {name: copy.deepcopy(head) for name, head in heads.items()}
    for head in copies.values():
        fit(head, preferences, steps, seed, lr)
    return copies
