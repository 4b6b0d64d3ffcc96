"""Differentiable reward models that a method learns through and retrains, and their state as bytes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from sharpening.data.source import Batch

REWARD_MODELS: dict[str, str] = {
    "embedded": "sharpening.rewards.embedded:CompositionalModels",
}
"""Import path of each set of reward models, by the name users give it."""


class RewardModels(Protocol):
    """K frozen reward models, made by `module:class` from the device they are to work on.

    Attributes:
        names: what each judges.
    """

    names: tuple[str, ...]

    def rewards(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "model batch"]:
        """Rewards of images in [0, 1], with a graph back to the pixels where gradients are enabled."""

    def retrain(self, pairs: Batch, steps: int, seed: int) -> None:
        """Go on training on preference pairs (`k = 2`, the preferred image first); deterministic."""

    def state(self) -> dict[str, Tensor]:
        """What retraining changes, on the CPU."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""


def load_reward_models(name: str, device: torch.device) -> RewardModels:
    """Make reward models.

    Args:
        name: a name in `REWARD_MODELS`, or the import path `module:class` of others.
        device: where they are to work.

    Returns:
        The models, frozen.

    Raises:
        ValueError: if there are no such models.
    """
    path = REWARD_MODELS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        known = ", ".join(REWARD_MODELS)
        raise ValueError(f"unknown reward models '{name}'; choose one of {known}, or pass module:class")
    try:
        return getattr(importlib.import_module(module), attribute)(device)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the reward models '{path}' cannot be imported ({error}); pass installed ones") from error


@torch.no_grad()
def pairwise_accuracy(models: RewardModels, pairs: Batch, device: torch.device, batch_size: int = 64) -> float:
    """Share of (model, pair) in which the preferred image has the higher reward.

    Args:
        models: the reward models.
        pairs: preference pairs, at least one.
        device: where the models are.
        batch_size: pairs of one pass.

    Returns:
        The share; a tie counts as wrong.
    """
    right = []
    for start in range(0, len(pairs), batch_size):
        part = pairs.select(range(start, min(start + batch_size, len(pairs))))
        pixels = torch.from_numpy(part.images).to(device).permute(1, 0, 4, 2, 3).float() / 255
        better, other = (models.rewards(member, part.prompts) for member in pixels)
        right.append((better > other).float())
    return torch.cat(right, dim=1).mean().item()


def join(first: Batch, second: Batch) -> Batch:
    """Examples of two batches; one without any fits every other."""
    if not len(first) or not len(second):
        return second if len(second) else first
    return Batch(first.prompts + second.prompts, np.concatenate([first.images, second.images]))


def pack(weights: dict[str, Tensor], pairs: Batch) -> bytes:
    """Retrained weights and the preference data they were trained on, as safetensors.

    Args:
        weights: name to tensor.
        pairs: preference pairs.

    Returns:
        The file's bytes; equal content gives equal bytes.
    """
    prompts = torch.from_numpy(np.frombuffer(json.dumps(pairs.prompts).encode(), np.uint8).copy())
    tensors = {f"weights.{name}": value.contiguous() for name, value in weights.items()}
    return save(tensors | {"prompts": prompts, "images": torch.from_numpy(np.ascontiguousarray(pairs.images))})


def unpack(state: bytes) -> tuple[dict[str, Tensor], Batch]:
    """What `pack` packed.

    Args:
        state: its bytes; b"" is no weights and no pairs.

    Returns:
        Weights and pairs.
    """
    if not state:
        return {}, Batch([], np.zeros((0, 2, 0, 0, 3), np.uint8))
    tensors = load(state)
    prompts = json.loads(tensors.pop("prompts").numpy().tobytes())
    images = tensors.pop("images").numpy()
    return {name.removeprefix("weights."): value for name, value in tensors.items()}, Batch(prompts, images)
