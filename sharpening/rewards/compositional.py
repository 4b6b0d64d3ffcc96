"""IterComp's composition-aware rewards (Zhang et al., arXiv 2410.07171): three models of ImageReward's architecture.

As in `github.com/YangLing0818/IterComp` (`Iterative_feedback/feedback_train.py`), where each is an ImageReward, with
its mean and deviation too, and their hinge losses are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.rewards.base import Scores
from sharpening.rewards.compositional_files import REPOSITORY, WANTED, look_for, places
from sharpening.rewards.image_reward import ImageRewardScorer
from sharpening.rewards.image_reward_files import tokenizer_place
from sharpening.rewards.scorer import finite_scores
from sharpening.rewards.weights import weights_file


class CompositionalScorer:
    """Weighted sum of what an image is worth for attributes, spatial and non-spatial relations, in ImageReward's unit.

    As with the models it is made of, a score is a function of image and prompt to the last bit.

    Attributes:
        names: what each model judges.
        weights: of the models in the score.
        batch_size: images of a forward pass, at most what was asked for.
        image_size: (height, width) the models read, in pixels.
    """

    names = tuple(WANTED)

    def __init__(
        self,
        model: str = REPOSITORY,
        checkpoint: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        weights: Sequence[float] | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """Load the models.

        Args:
            model: folder, `owner/name` or `owner/name:folder` of the hub, with one checkpoint for each of `names`, told
                by its name, and, to do without the hub, BERT's `vocab.txt`.
            checkpoint: the three checkpoints in place of the model's, in the order of `names`, with commas between.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.
            weights: one a model; None weighs them alike, with sum 1.
            tokenizer: folder or hub id of a BERT tokenizer; None: the model's folder if it holds one, else
                `bert-base-uncased`.

        Raises:
            RewardModelError: if a model cannot be loaded.
            ValueError: if the weights do not fit the models, or `batch_size` is below 1.
        """
        self.weights = [1 / len(WANTED)] * len(WANTED) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.names):
            raise ValueError(f"{len(self.weights)} weights do not fit; pass one for each of {', '.join(self.names)}")
        files = [
            weights_file(value, option, *look_for(aspect, checkpoint))
            for aspect, (value, option) in places(model, checkpoint).items()
        ]
        words = tokenizer_place(model, tokenizer)
        self._models = [ImageRewardScorer(model, str(file), device, batch_size, words) for file in files]
        self.batch_size = min(judge.batch_size for judge in self._models)
        self.image_size = self._models[0].image_size

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts; see `score`."""
        return self.score(images, prompts)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            float32 `[N]`, NaN where any model's score is not finite (`failures[i] == "not finite"`).

        Raises:
            ValueError: if the arguments have other shapes or types.
        """  # noqa: DOC502
        rewards = np.stack([judge.score(images, prompts).values for judge in self._models]).astype(np.float64)
        return finite_scores((rewards * np.array(self.weights)[:, None]).sum(axis=0).astype(np.float32))

    def differentiable(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """The same scores with a gradient to the pixels; see `ImageScorer.differentiable`.

        Args:
            images: float32 in [0, 1], on any device.
            prompts: one a row.

        Returns:
            Scores in `score`'s unit, on the scorer's device.

        Raises:
            ValueError: if the numbers of images and prompts differ.
        """  # noqa: DOC502
        rewards = self.each(images, prompts)
        return (rewards * rewards.new_tensor(self.weights)[:, None]).sum(dim=0)

    def each(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "model batch"]:
        """Every model's reward, with a gradient to the pixels.

        Args:
            images: float32 in [0, 1], on any device.
            prompts: one a row.

        Returns:
            One row a model, in the order of `names`, on the scorer's device.

        Raises:
            ValueError: if the numbers of images and prompts differ.
        """  # noqa: DOC502
        return torch.stack([judge.differentiable(images, prompts) for judge in self._models])
