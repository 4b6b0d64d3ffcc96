"""What open_clip models consist of, told without torch; shared by every reward that is built on one."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sharpening.checks import ModelFolderError, check_clip_folder, check_hub_cache, local_path, read_json
from sharpening.rewards.base import RewardModelError
from sharpening.rewards.layouts import CHECKPOINT, MODEL, SUFFIXES, Shapes, check_layout, file_shapes

EMBEDDED = "embedded"
HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse a CLIP that is not there.

    Args:
        model: "embedded", a folder, a hub id or an architecture; None: "embedded".
        checkpoint: weights of an architecture: a file or a pretrained tag.

    Raises:
        RewardModelError: if a file is absent, truncated or another model's, or an architecture has no weights.
    """
    config = check_model(model or EMBEDDED)
    if model in architectures() and checkpoint is None:
        raise RewardModelError(
            f"the architecture {model} comes without weights; pass a file or a pretrained tag as --{CHECKPOINT}",
            CHECKPOINT,
        )
    if checkpoint is None:
        return
    if model not in architectures():
        raise RewardModelError(own_weights(model or EMBEDDED), CHECKPOINT)
    if is_file_name(checkpoint):
        check_checkpoint(Path(checkpoint).expanduser(), config)


def check_model(model: str) -> dict[str, Any] | None:
    """Refuse a model that is no architecture, hub id or whole folder.

    Args:
        model: "embedded", a folder, a hub id or an architecture.

    Returns:
        Its configuration (`embed_dim`, `vision_cfg`, `text_cfg`); None if only the hub knows it.

    Raises:
        RewardModelError: if there is no such model, or the folder is damaged.
    """
    known = architectures()
    if model in known:
        return read_json(known[model])
    try:
        folder = model_folder(model)
        return None if folder is None else check_clip_folder(folder)["model_cfg"]
    except ModelFolderError as error:
        raise RewardModelError(str(error), MODEL) from error


def model_folder(model: str) -> Path | None:
    """The folder that a model is.

    Args:
        model: "embedded", a folder or a hub id, but no architecture.

    Returns:
        The folder; None for a hub id.

    Raises:
        ModelFolderError: if there is no such folder.
    """  # noqa: DOC502
    if model == EMBEDDED:
        from sharpening.shapes.assets import clip_folder

        return clip_folder()
    if model.startswith(FOLDER_PREFIX):
        return Path(model.removeprefix(FOLDER_PREFIX)).expanduser()
    if model.startswith(HUB_PREFIX):
        check_hub_cache(model.removeprefix(HUB_PREFIX))
        return None
    return local_path(model, f"pass a model folder, a hub id, an open_clip architecture or '{EMBEDDED}'")


def check_checkpoint(path: Path, config: dict[str, Any] | None) -> None:
    """Refuse a weights file that is absent, truncated or another architecture's.

    Args:
        path: the file.
        config: the architecture; None if it is not known.

    Raises:
        RewardModelError: if the file is refused.
    """
    if not path.is_file():
        raise RewardModelError(
            f"there is no file {path}; pass a file or a pretrained tag as --{CHECKPOINT}", CHECKPOINT
        )
    found = file_shapes(path, CHECKPOINT)
    if found is not None and config is not None:
        remedy = f"pass the weights of this architecture as --{CHECKPOINT}, or another --{MODEL}"
        check_layout(path, found, transformer_shapes(config), remedy, CHECKPOINT, ignored=".*")


def transformer_shapes(config: dict[str, Any]) -> Shapes:
    """The tensors by which a CLIP of two transformers is told from others.

    Args:
        config: open_clip's configuration of the model.

    Returns:
        Shapes by name; none for towers of other kinds (ResNets, timm's, transformers').
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    patch, foreign = vision.get("patch_size"), {"timm_model_name", "hf_model_name"} & {*vision, *text}
    if config.get("custom_text") or foreign or not isinstance(patch, int):
        return {}
    width, embed = vision["width"], config["embed_dim"]
    return {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.proj": (width, embed),
        "token_embedding.weight": (text.get("vocab_size", 49408), text["width"]),
        "positional_embedding": (text.get("context_length", 77), text["width"]),
        "text_projection": (text["width"], embed),
    }


def architectures() -> dict[str, Path]:
    """open_clip's architectures and their files, found without importing it: that would import torch."""
    spec = find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return {path.stem: path for folder in folders for path in sorted(Path(folder, "model_configs").glob("*.json"))}


def own_weights(model: str) -> str:
    """What is wrong with a checkpoint for a model that is a folder or of the hub, and what to do."""
    return f"{model} has weights of its own; leave --{CHECKPOINT} out, or name an open_clip architecture as --{MODEL}"


def is_file_name(checkpoint: str) -> bool:
    """Whether a checkpoint is a file's name, and no pretrained tag."""
    return os.sep in checkpoint or checkpoint.endswith(SUFFIXES)
