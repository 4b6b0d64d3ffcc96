"""What scorers on torch models share: fixed batches, prompts read once, failures, gradients to the pixels."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.rewards.base import Scores
from sharpening.rewards.batches import in_fixed_batches, rows_are_independent
from sharpening.rewards.preprocessing import Preprocessing
from sharpening.rewards.requests import check_request

logger = logging.getLogger(__name__)

TEXT_CACHE = 16_384  # prompts; a few kB each
PROBE = "a red circle left of a blue square"


class ImageScorer(ABC):
    """Scores images against their prompts by a torch model; subclasses say how features become a score.

    A score is a function of image and prompt alone, to the last bit. Floating-point sums depend on the order in
    which a matrix product is tiled, and the tiling on the shapes; so every image passes the model in a batch of
    exactly `batch_size` images, padded with black ones, and every prompt passes alone. That the rows of such a batch
    do not depend on their position or on one another holds for the libraries at hand, but no library promises it:
    it is tried when the scorer is made, and the batch size halved until it holds (at 1 it holds by itself). What
    remains are the machine, the library versions and the number of threads: scores are compared to the last bit only
    where these are equal.

    Attributes:
        batch_size: images of a forward pass, at most what was asked for.
        image_size: (height, width) the model reads, in pixels; other sizes are resized.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device, batch_size: int) -> None:
        """Settle the batch size; the model has been loaded.

        Args:
            preprocessing: of the model's images.
            device: where the model is.
            batch_size: images of a forward pass; a request is padded to a multiple of it.

        Raises:
            ValueError: if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; pass 1 or more")
        self._device = device
        self._preprocess = preprocessing.to(device)
        self.image_size = preprocessing.size
        self._text = lru_cache(maxsize=TEXT_CACHE)(self._encode_prompt)
        self.batch_size = batch_size
        while self.batch_size > 1 and not self._rows_are_independent():
            self.batch_size //= 2
            logger.warning("rows of a batch depend on one another here; scoring %d images at a time", self.batch_size)

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts; see `score`."""
        return self.score(images, prompts)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            float32 `[N]` in the scorer's unit, NaN where it is not finite (`failures[i] == "not finite"`).

        Raises:
            ValueError: if the arguments have other shapes or types.
        """  # noqa: DOC502
        check_request(images, prompts)
        if len(images) == 0:
            return Scores(np.zeros(0, np.float32), {})
        text = np.stack([self._text(prompt) for prompt in prompts])  # [N, D]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values = in_fixed_batches(self._score_batch, self.batch_size, images, text).astype(np.float32)
        return finite_scores(values)

    def differentiable(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """The same scores with a gradient to the pixels.

        They equal `score`'s of the images rounded to 8 bit, up to that rounding and to float32's: rows are not kept
        apart to the last bit here.

        Args:
            images: float32 in [0, 1], on any device.
            prompts: one a row.

        Returns:
            Scores in `score`'s unit, on the scorer's device; not checked for being finite.

        Raises:
            ValueError: if the numbers of images and prompts differ.
        """  # noqa: DOC502
        return self._compare_tensors(*self._read(images, prompts))

    @abstractmethod
    def _features(self, pixels: Tensor) -> Tensor:
        """What is read off preprocessed images: `[B, 3, H, W]` → `[B, ...]`."""

    @abstractmethod
    def _encode_prompt(self, prompt: str) -> np.ndarray:
        """What is read off one prompt, alone in its batch: `[D]`, of numbers that float32 holds."""

    @abstractmethod
    def _compare_tensors(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores `[B]` of images' features `[B, ...]` and prompts' `[B, D]` float32, with a gradient to the former."""

    def _read(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features of images in [0, 1], with a gradient to the pixels, and of their prompts, without."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images need as many prompts, not {len(prompts)}")
        features = self._features(self._preprocess(255.0 * images.to(self._device, torch.float32)))
        return features, self._to_device(np.stack([self._text(prompt) for prompt in prompts]))

    def _to_device(self, text: np.ndarray) -> Tensor:
        return torch.from_numpy(text).to(self._device, torch.float32)

    def _score_batch(self, images: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Scores float64 `[B]` of one batch: images uint8 `[B, H, W, 3]` and what was read off their prompts."""
        with torch.inference_mode():
            return self._score_features(self._image_features(images), text)

    def _score_features(self, features: Tensor, text: np.ndarray) -> np.ndarray:
        return self._compare_tensors(features, self._to_device(text)).double().cpu().numpy()

    def _image_features(self, batch: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).contiguous()
        return self._features(self._preprocess(pixels))

    def _rows_are_independent(self) -> bool:
        """Whether one image has the same features and score in every row and beside any neighbours, bit for bit."""
        text = np.repeat(self._text(PROBE)[None], self.batch_size, 0)

        def evaluate(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                features = self._image_features(images)
                scores = self._score_features(features, text)
            return np.concatenate([features.flatten(1).cpu().numpy(), scores[:, None]], axis=1)

        return rows_are_independent(evaluate, noise_images(self.batch_size, self.image_size))


class CosineScorer(ImageScorer):
    """A scorer whose score is a multiple of the cosine of image and prompt embeddings, taken in float64."""

    _scale = 100.0

    def _compare(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Scores float64 `[N]` of images' embeddings `[N, D]` and prompts' unit ones `[N, D]`."""
        return self._scale * (unit(image) * text).sum(axis=1)

    def _compare_tensors(self, image: Tensor, text: Tensor) -> Tensor:
        return self._scale * (image / image.norm(dim=1, keepdim=True) * text).sum(dim=1)

    def _score_batch(self, images: np.ndarray, text: np.ndarray) -> np.ndarray:
        return self._compare(self._encode_batch(images), text)

    def _encode_batch(self, batch: np.ndarray) -> np.ndarray:
        """Embeddings float64 `[B, D]` of a batch of images."""
        with torch.inference_mode():
            return self._image_features(batch).double().cpu().numpy()

    def _encode_images(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float64 `[N, D]` of images `[N, H, W, 3]`, computed in batches of one fixed shape."""
        return in_fixed_batches(self._encode_batch, self.batch_size, images)

    def _rows_are_independent(self) -> bool:
        return rows_are_independent(self._encode_batch, noise_images(self.batch_size, self.image_size))


def finite_scores(values: np.ndarray) -> Scores:
    """Scores of which those that are not finite are failures.

    Args:
        values: float32 `[N]`.

    Returns:
        The scores, NaN where they are not finite.
    """
    failed = np.flatnonzero(~np.isfinite(values))
    values[failed] = np.nan
    return Scores(values, {int(i): "not finite" for i in failed})


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors float64 `[N, D]` divided by their lengths, each row by itself."""
    return vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))


def noise_images(count: int, size: tuple[int, int]) -> np.ndarray:
    """Images uint8 `[count, *size, 3]` of noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
