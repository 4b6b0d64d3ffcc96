"""The CLIP score, cosine × 100, of any open_clip model; an image's score never depends on its neighbours."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.checks import ModelFolderError, check_clip_folder, check_safetensors
from sharpening.rewards.base import Scores
from sharpening.rewards.batches import in_fixed_batches, rows_are_independent
from sharpening.rewards.requests import check_request

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"
TEXT_CACHE = 16_384  # prompts; a few kB each


class RewardModelError(ModelFolderError):
    """The reward's model is missing, damaged or no open_clip model; the message names the file."""


class ClipScorer:
    """CLIP score of images: 100 × cosine of image and prompt embeddings, not clamped.

    A score is a function of image and prompt alone, to the last bit. Floating-point sums depend on the order in
    which a matrix product is tiled, and the tiling on the shapes; so every image passes the model in a batch of
    exactly `batch_size` images, padded with black ones, and every prompt passes alone. That the rows of such a batch
    do not depend on their position or on one another holds for the libraries at hand, but no library promises it:
    it is tried when the scorer is made, and the batch size halved until it holds (at 1 it holds by itself). What
    remains are the machine, the library versions and the number of threads: scores are compared to the last bit only
    where these are equal.

    Attributes:
        batch_size: images of a forward pass, at most what was asked for.
        image_size: (height, width) the model reads, in pixels; other sizes are resized as open_clip does it.
    """

    def __init__(
        self, model: str = EMBEDDED, checkpoint: str | None = None, device: str = "cpu", batch_size: int = 32
    ) -> None:
        """Load the model.

        Args:
            model: "embedded" (the shipped model), a folder in open_clip's `local-dir:` layout, a hub id
                (`hf-hub:owner/name` or `owner/name`), or the name of an open_clip architecture.
            checkpoint: weights of an architecture: a file or one of open_clip's pretrained tags.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.

        Raises:
            RewardModelError: if the model cannot be loaded.
            ValueError: if `batch_size` is below 1.
        """  # noqa: DOC502
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; pass 1 or more")
        self._device = torch.device(device)
        self._model, self._tokenizer = load_open_clip(model, checkpoint, self._device)
        config: dict[str, Any] = self._model.visual.preprocess_cfg
        size = config["size"]
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self._preprocess_cfg = config
        self._mean = torch.tensor(config["mean"], device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(config["std"], device=self._device).view(1, 3, 1, 1)
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
            float32 `[N]`, 100 × cosine, NaN where it is not finite (`failures[i] == "not finite"`).

        Raises:
            ValueError: if the arguments have other shapes or types.
        """  # noqa: DOC502
        check_request(images, prompts)
        if len(images) == 0:
            return Scores(np.zeros(0, np.float32), {})
        text = np.stack([self._text(prompt) for prompt in prompts])  # [N, D]
        image = self._encode_images(images)  # [N, F]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values = self._compare(image, text).astype(np.float32)
        failed = np.flatnonzero(~np.isfinite(values))
        values[failed] = np.nan
        return Scores(values, {int(i): "not finite" for i in failed})

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

    def embed(self, images: np.ndarray) -> Float[np.ndarray, "image feature"]:
        """Embeddings of images, as distances between sets of images are taken on.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.

        Returns:
            float64, each of length 1.
        """
        return unit(self._encode_images(images))

    def _read(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features of images in [0, 1], with a gradient to the pixels, and of their prompts, without."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images need as many prompts, not {len(prompts)}")
        text = np.stack([self._text(prompt) for prompt in prompts])
        features = self._features(self._preprocess(255.0 * images.to(self._device, torch.float32)))
        return features, torch.from_numpy(text).to(features)

    def _features(self, pixels: Tensor) -> Tensor:
        """What is read off preprocessed images: `[B, 3, H, W]` → `[B, F]`."""
        return self._model.encode_image(pixels)

    def _compare(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Scores float64 `[N]` of images' features `[N, F]` and prompts' `[N, D]`."""
        return 100.0 * (unit(image) * text).sum(axis=1)

    def _compare_tensors(self, image: Tensor, text: Tensor) -> Tensor:
        """`_compare` with a gradient to the features."""
        return 100.0 * (image / image.norm(dim=1, keepdim=True) * text).sum(dim=1)

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        """Unit embedding float64 `[D]` of one prompt, alone in its batch."""
        with torch.inference_mode():
            embedding = self._model.encode_text(self._tokenizer([prompt]).to(self._device))
        with np.errstate(invalid="ignore", divide="ignore"):
            return unit(embedding.double().cpu().numpy())[0]

    def _encode_images(self, images: np.ndarray) -> np.ndarray:
        """Features float64 `[N, F]` of images `[N, H, W, 3]`, computed in batches of one fixed shape."""
        return in_fixed_batches(self._encode_batch, images, self.batch_size)

    def _encode_batch(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).contiguous()
            features = self._features(self._preprocess(pixels))
        return features.double().cpu().numpy()

    def _preprocess(self, pixels: Tensor) -> Tensor:
        """open_clip's own preprocessing, on tensors: `[B, 3, H, W]` in 0..255 → float32 of the model's size."""
        if tuple(pixels.shape[-2:]) != self.image_size:
            pixels = resize(pixels, self.image_size, self._preprocess_cfg)
        return pixels.float().div(255.0).sub(self._mean).div(self._std)

    def _rows_are_independent(self) -> bool:
        """Whether one image has the same features in every row and beside any neighbours, bit for bit."""
        noise = np.random.default_rng(0).integers(0, 256, (self.batch_size, *self.image_size, 3), np.uint8)
        return rows_are_independent(self._encode_batch, noise)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors float64 `[N, D]` divided by their lengths, each row by itself."""
    return vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))


def resize(pixels: Tensor, size: tuple[int, int], config: dict[str, Any]) -> Tensor:
    """Bring images to the model's size as open_clip's evaluation transform does.

    Args:
        pixels: `[B, 3, H, W]` in 0..255, uint8 or float.
        size: (height, width) the model reads.
        config: `resize_mode` ("shortest": resize the shorter edge and crop the centre; "longest": resize the longer
            edge and pad; "squash"), `interpolation` ("bicubic", "bilinear") and `fill_color` of the padding.

    Returns:
        `[B, 3, *size]` of the same type; floats are not rounded, but kept in 0..255 where bicubic overshoots.
    """
    from open_clip.transform import center_crop_or_pad
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    linear = config.get("interpolation") == "bilinear"
    mode = config.get("resize_mode") or "shortest"
    height, width = pixels.shape[-2:]
    ratios = (height / size[0], width / size[1])
    target: list[int]
    if mode == "squash":
        target = list(size)
    elif mode == "shortest" and size[0] == size[1]:
        target = [size[0]]  # torchvision rounds the longer edge down
    else:
        ratio = min(ratios) if mode == "shortest" else max(ratios)
        target = [round(height / ratio), round(width / ratio)]
    interpolation = InterpolationMode.BILINEAR if linear else InterpolationMode.BICUBIC
    pixels = F.resize(pixels, target, interpolation, antialias=True)
    if pixels.is_floating_point():
        pixels = pixels.clamp(0, 255)
    return center_crop_or_pad(pixels, size, fill=config.get("fill_color", 0))


def load_open_clip(model: str, checkpoint: str | None, device: torch.device) -> tuple[Any, Any]:
    """Load an open_clip model, frozen and in evaluation mode, with its tokenizer.

    Args:
        model: "embedded", a folder, a hub id or an architecture; see `ClipScorer`.
        checkpoint: file or pretrained tag of an architecture.
        device: where the model goes.

    Returns:
        Model and tokenizer.

    Raises:
        RewardModelError: if the model cannot be loaded; the message names the folder or file.
    """
    import open_clip

    try:
        name = open_clip_name(model, checkpoint)
        if checkpoint and checkpoint.endswith(".safetensors"):
            check_safetensors(checkpoint)
        loaded = open_clip.create_model(name, pretrained=checkpoint, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    except RewardModelError:
        raise
    except ModelFolderError as error:
        raise RewardModelError(str(error)) from error
    except Exception as error:  # open_clip, torch and transformers raise whatever they meet
        reason = " ".join(str(error).split())[:300]
        raise RewardModelError(f"{checkpoint or model} does not load ({reason}); pass another reward model") from error
    return loaded.eval().requires_grad_(False), tokenizer


def open_clip_name(model: str, checkpoint: str | None = None) -> str:
    """The name by which open_clip loads a model, after cheap checks of what it points to.

    Args:
        model: "embedded", a folder, a hub id or an architecture; see `ClipScorer`.
        checkpoint: file or pretrained tag of an architecture.

    Returns:
        `local-dir:…`, `hf-hub:…` or the architecture.

    Raises:
        RewardModelError: if the folder is damaged, or an architecture has no weights.
    """
    import open_clip

    if model == EMBEDDED:
        from sharpening.shapes.assets import clip_folder

        model = str(clip_folder())
    if model.startswith(HUB_PREFIX):
        return model
    path = Path(model.removeprefix(FOLDER_PREFIX)).expanduser()
    if model.startswith(FOLDER_PREFIX) or path.exists():
        try:
            check_clip_folder(path)
        except ModelFolderError as error:
            raise RewardModelError(str(error)) from error
        return f"{FOLDER_PREFIX}{path}"
    if model in open_clip.list_models():
        if checkpoint is None:
            raise RewardModelError(f"the architecture {model} comes without weights; pass a checkpoint")
        return model
    if model.count("/") == 1 and not model.startswith((".", "~", os.sep)):
        return f"{HUB_PREFIX}{model}"
    raise RewardModelError(f"there is no folder, hub id or open_clip architecture {model}; pass one of these")
