"""The CLIP score, cosine × 100, of any open_clip model; an image's score never depends on its neighbours."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.clip_files import (
    EMBEDDED,
    FOLDER_PREFIX,
    HUB_PREFIX,
    check_checkpoint,
    check_model,
    is_file_name,
    model_folder,
    own_weights,
)
from sharpening.rewards.layouts import CHECKPOINT, MODEL
from sharpening.rewards.preprocessing import Preprocessing
from sharpening.rewards.scorer import CosineScorer, unit
from sharpening.rewards.weights import one_line, pickled

__all__ = ["EMBEDDED", "ClipScorer", "RewardModelError", "load_open_clip", "open_clip_name"]


class ClipScorer(CosineScorer):
    """CLIP score of images: 100 × cosine of image and prompt embeddings, not clamped.

    Attributes:
        batch_size: images of a forward pass, at most what was asked for.
        image_size: (height, width) the model reads, in pixels; other sizes are resized as open_clip does it.
    """

    _exact_resize = False

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
        place = torch.device(device)
        self._model, self._tokenizer = load_open_clip(model, checkpoint, place)
        preprocessing = Preprocessing.of_open_clip(self._model.visual.preprocess_cfg, self._exact_resize)
        super().__init__(preprocessing, place, batch_size)

    def embed(self, images: np.ndarray) -> Float[np.ndarray, "image feature"]:
        """Embeddings of images, as distances between sets of images are taken on.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.

        Returns:
            float64, each of length 1.
        """
        return unit(self._encode_images(images))

    def _features(self, pixels: Tensor) -> Tensor:
        return self._model.encode_image(pixels)

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        """Unit embedding float64 `[D]` of one prompt, alone in its batch."""
        with torch.inference_mode():
            embedding = self._model.encode_text(self._tokenizer([prompt]).to(self._device))
        with np.errstate(invalid="ignore", divide="ignore"):
            return unit(embedding.double().cpu().numpy())[0]


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
    from sharpening.rewards.lean_open_clip import open_clip

    option = CHECKPOINT if checkpoint else MODEL
    if checkpoint and is_file_name(checkpoint):
        checkpoint = str(Path(checkpoint).expanduser())
    name = open_clip_name(model, checkpoint)
    try:
        # OpenAI's weights, and some others, were trained with another GELU than their architecture's name says.
        tag = open_clip.get_pretrained_cfg(name, checkpoint) if checkpoint else {}
        loaded = open_clip.create_model(
            name, pretrained=checkpoint, device=device, require_pretrained=True,
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
        )  # fmt: skip
        tokenizer = open_clip.get_tokenizer(name)
    except pickle.UnpicklingError as error:
        raise RewardModelError(pickled(Path(checkpoint or model)), option) from error
    except Exception as error:  # open_clip, torch and transformers raise whatever they meet
        raise RewardModelError(
            f"{checkpoint or model} does not load ({one_line(error)}); pass another one as --{option}", option
        ) from error
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
    from sharpening.rewards.lean_open_clip import open_clip

    if model in open_clip.list_models():
        if checkpoint is None:
            raise RewardModelError(
                f"the architecture {model} comes without weights; pass a checkpoint as --{CHECKPOINT}", CHECKPOINT
            )
        if is_file_name(checkpoint):
            check_checkpoint(Path(checkpoint), open_clip.get_model_config(model))
        return model
    if checkpoint is not None:
        raise RewardModelError(own_weights(model), CHECKPOINT)
    check_model(model)
    folder = model_folder(model)
    return f"{HUB_PREFIX}{model.removeprefix(HUB_PREFIX)}" if folder is None else f"{FOLDER_PREFIX}{folder}"
