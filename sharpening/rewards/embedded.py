"""The embedded world's learnt rewards: Bradley-Terry heads on the embedded CLIP.

Their numbers are logits on a scale set once, when the heads were trained: clean, true pictures have 1 in the mean, and
what they were ranked against 0. Differences within a prompt are what was learnt; how prompts compare is less certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.checks import ModelFolderError
from sharpening.data.source import Batch
from sharpening.rewards.base import RewardModelError
from sharpening.rewards.clip import EMBEDDED, ClipScorer
from sharpening.rewards.scorer import ImageScorer
from sharpening.shapes.assets import clip_folder, heads_folder
from sharpening.shapes.preference_training import retrain
from sharpening.shapes.reward_heads import RewardHead, image_features, load_heads, text_tokens


class FeatureReader(ClipScorer):
    """The embedded CLIP, asked for what reward heads read (`reward_heads.image_features`, `text_tokens`)."""

    def _features(self, pixels: Tensor) -> Tensor:
        return image_features(self._model, pixels)

    def image_rows(self, images: np.ndarray) -> Float[Tensor, "image feature"]:
        """Features of images, each as if it were alone.

        Args:
            images: uint8 `[I, H, W, 3]`.

        Returns:
            float32, on the CPU.
        """
        return torch.from_numpy(self._encode_images(images).astype(np.float32))

    @torch.no_grad()
    def token_rows(self, prompts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "prompt token width"]:
        """Hidden states of captions' tokens.

        Args:
            prompts: captions.
            batch_size: captions of a pass.

        Returns:
            float16, on the CPU: they are many.
        """
        parts = [
            text_tokens(self._model, self._tokenizer(list(prompts[start : start + batch_size])).to(self._device))
            for start in range(0, len(prompts), batch_size)
        ]
        return torch.cat(parts).half().cpu()


class EmbeddedScorer(FeatureReader):
    """Weighted sum of reward heads. As with `ClipScorer`, a score is a function of image and prompt to the last bit.

    Subclasses name the heads.

    Attributes:
        names: the heads.
        heads: the heads by name, frozen.
        weights: of the heads in the score.
    """

    names: ClassVar[tuple[str, ...]]
    _score_batch = ImageScorer._score_batch  # by heads, not by ClipScorer's cosine
    _rows_are_independent = ImageScorer._rows_are_independent

    def __init__(
        self,
        model: str = EMBEDDED,
        device: str = "cpu",
        batch_size: int = 32,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Load the heads and the CLIP they read from.

        Args:
            model: "embedded", or a folder that `python -m sharpening.shapes.train heads` wrote.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.
            weights: one a head; None weighs them alike, with sum 1.

        Raises:
            RewardModelError: if a file is missing, damaged, or made for another CLIP.
            ValueError: if the weights do not fit the heads, or `batch_size` is below 1.
        """
        folder = heads_folder() if model == EMBEDDED else Path(model).expanduser()
        try:
            heads = load_heads(folder, self.names, clip_folder())
        except ModelFolderError as error:
            raise RewardModelError(str(error)) from error
        self.weights = [1 / len(heads)] * len(heads) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(heads):
            raise ValueError(f"{len(self.weights)} weights do not fit; pass one for each of {', '.join(self.names)}")
        self.heads: dict[str, RewardHead] = {name: head.to(device) for name, head in heads.items()}
        super().__init__(EMBEDDED, device=device, batch_size=batch_size)

    def replace_heads(self, heads: Mapping[str, RewardHead]) -> None:
        """Score by other heads from now on.

        Args:
            heads: by name, for all of `names`.
        """
        self.heads = {name: heads[name].to(self._device) for name in self.names}
        self._text.cache_clear()

    def each(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "head batch"]:
        """Every head's reward, with a gradient to the pixels.

        Args:
            images: float32 in [0, 1], on any device.
            prompts: one a row.

        Returns:
            One row a head, in the order of `names`, on the scorer's device.

        Raises:
            ValueError: if the numbers of images and prompts differ.
        """  # noqa: DOC502
        return self._judge(*self._read(images, prompts))

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        """What the heads make of one prompt, alone in its batch: float64 `[heads · width]`."""
        with torch.inference_mode():
            tokens = text_tokens(self._model, self._tokenizer([prompt]).to(self._device))
            vectors = [head.read(tokens)[0] for head in self.heads.values()]
        return torch.cat(vectors).double().cpu().numpy()

    def _judge(self, image: Tensor, text: Tensor) -> Tensor:
        vectors = text.split([head.width for head in self.heads.values()], dim=1)
        return torch.stack([head(image, own) for head, own in zip(self.heads.values(), vectors, strict=True)])

    def _compare_tensors(self, image: Tensor, text: Tensor) -> Tensor:
        rewards = self._judge(image, text)
        return (rewards * rewards.new_tensor(self.weights)[:, None]).sum(dim=0)


class AestheticScorer(EmbeddedScorer):
    """How cleanly an image is drawn, whatever the prompt asks."""

    names = ("aesthetic",)


class PreferenceScorer(EmbeddedScorer):
    """The overall preference: what the prompt asks, cleanly drawn."""

    names = ("preference",)


class AttributeScorer(EmbeddedScorer):
    """Whether shapes, colours and textures are those of the prompt, each with its own thing."""

    names = ("attribute",)


class SpatialScorer(EmbeddedScorer):
    """Whether the things stand to one another as the prompt says."""

    names = ("spatial",)


class NonSpatialScorer(EmbeddedScorer):
    """Whether there are as many things as the prompt says, and the right one is larger."""

    names = ("non_spatial",)


class CompositionalScorer(EmbeddedScorer):
    """The weighted sum of the three compositional rewards."""

    names = ("attribute", "spatial", "non_spatial")


class CompositionalModels:
    """The compositional heads as IterPO learns through and retrains them (`methods.reward_models.RewardModels`).

    Attributes:
        names: what each judges.
    """

    names = CompositionalScorer.names

    def __init__(self, device: torch.device) -> None:
        """Load the shipped heads.

        Args:
            device: where they are to work.
        """
        self._scorer = CompositionalScorer(device=str(device))

    def rewards(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "model batch"]:
        """Rewards with a gradient to the pixels.

        Args:
            images: float32 in [0, 1].
            prompts: one a row.

        Returns:
            One row a model.
        """
        return self._scorer.each(images, prompts)

    def retrain(self, pairs: Batch, steps: int, seed: int) -> None:
        """Go on training on preference pairs; deterministic.

        Args:
            pairs: `k = 2`, the better image first.
            steps: optimiser steps of each head.
            seed: seed of the batches.
        """
        self._scorer.replace_heads(retrain(self._scorer.heads, self._scorer, pairs, steps, seed))

    def state(self) -> dict[str, Tensor]:
        """The heads' weights.

        Returns:
            Tensors on the CPU, by `HEAD.PARAMETER`.
        """
        heads = self._scorer.heads.items()
        return {f"{name}.{key}": value.cpu() for name, head in heads for key, value in head.state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned.

        Args:
            state: tensors by `HEAD.PARAMETER`.
        """
        for name, head in self._scorer.heads.items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            head.load_state_dict(own)
        self._scorer.replace_heads(self._scorer.heads)
