"""What a PickScore folder holds, told without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sharpening.checks import ModelFolderError, check_weights, local_path, read_json
from sharpening.rewards.base import RewardModelError
from sharpening.rewards.layouts import CHECKPOINT, MODEL, Shapes, check_layout, file_shapes, local_weights

REPOSITORY = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""What the model was published to be used with."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse a model that is not there.

    Args:
        model: folder or hub id; None: the published one.
        checkpoint: weights in place of the model's own: a file, folder or hub id; None: the model's.

    Raises:
        RewardModelError: if a file is absent, truncated or another model's.
    """  # noqa: DOC502
    config = check_folder(model or REPOSITORY, weights=checkpoint is None)
    path = local_weights(checkpoint, CHECKPOINT) if checkpoint else None
    if path is not None:
        check_file(path, config, CHECKPOINT)


def check_folder(model: str, weights: bool = True) -> dict[str, Any] | None:
    """Refuse a folder that transformers' CLIP cannot be loaded from.

    Args:
        model: folder or hub id.
        weights: whether its weights are needed.

    Returns:
        Its configuration; None if only the hub knows it.

    Raises:
        RewardModelError: naming what is missing, truncated or another model's.
    """
    try:
        folder = local_path(model, "pass a folder or a hub id")
        if folder is None:
            return None
        config = read_json(folder / "config.json")
        if weights:
            check_weights(folder)
    except ModelFolderError as error:
        raise RewardModelError(str(error), MODEL) from error
    if config.get("model_type") != "clip":
        raise RewardModelError(
            f"{folder / 'config.json'} is of a {config.get('model_type')} model; pass the folder of a transformers "
            f"CLIPModel as --{MODEL}"
        )
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise RewardModelError(f"{folder / _PROCESSORS[0]} is missing; copy or download the model again")
    single = folder / "model.safetensors"
    if weights and single.is_file():
        check_file(single, config, MODEL)
    return config


def check_file(path: Path, config: dict[str, Any] | None, option: str) -> None:
    """Refuse weights that are not those of a CLIPModel.

    Args:
        path: the file.
        config: the model's configuration; None if it is not known.
        option: the option that names the file.

    Raises:
        RewardModelError: naming the tensor that is missing or of another shape.
    """  # noqa: DOC502
    found = file_shapes(path, option)
    if found is not None and config is not None:
        remedy = f"pass the weights of a transformers CLIPModel of this configuration as --{option}"
        check_layout(path, found, clip_shapes(config), remedy, option, ignored=".*")


def clip_shapes(config: dict[str, Any]) -> Shapes:
    """The tensors by which a CLIPModel is told from others.

    Args:
        config: its `config.json`, in which transformers leaves out what is the default.

    Returns:
        Shapes by name.
    """
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    width, words = text.get("hidden_size", 512), text.get("vocab_size", 49408)
    image_width, patch = vision.get("hidden_size", 768), vision.get("patch_size", 32)
    joint = config.get("projection_dim", 512)
    return {
        "logit_scale": (),
        "text_projection.weight": (joint, width),
        "visual_projection.weight": (joint, image_width),
        "text_model.embeddings.token_embedding.weight": (words, width),
        "vision_model.embeddings.patch_embedding.weight": (image_width, 3, patch, patch),
    }
