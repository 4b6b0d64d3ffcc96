"""Writes an open_clip model as a folder that `open_clip.create_model("local-dir:FOLDER")` loads, tokenizer included."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


def save_clip_folder(
    model: nn.Module,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    tokenizer: Any,
    folder: str | os.PathLike[str],
) -> Path:
    """Write `model` and `tokenizer` in open_clip's `local-dir:` layout and load the result once, strictly.

    The folder holds `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer's own files
    (`tokenizer.json`, `tokenizer_config.json`). open_clip reads the tokenizer from that same folder whenever
    `text_cfg.hf_tokenizer_name` is not empty, whatever it says; it is set here.

    Args:
        model: an `open_clip.CLIP` or `open_clip.CustomTextCLIP`, on any device.
        model_cfg: the configuration that built it: `embed_dim`, `vision_cfg`, `text_cfg`; the text configuration's
            `vocab_size` must hold the tokenizer, and its pooling (`pool_type` "argmax": the highest id of the
            sequence, the default; or "eos" with `eos_id`) must find the tokenizer's end-of-sequence token.
        preprocess_cfg: `mean` and `std` (three numbers each, of images in 0..1), optionally `interpolation`
            ("bicubic", "bilinear") and `resize_mode` ("shortest", "squash"); the size is the model's.
        tokenizer: a transformers tokenizer with padding, beginning- and end-of-sequence tokens.
        folder: created where it does not exist; files of the same names are replaced.

    Returns:
        The folder.

    Raises:
        ValueError: if the configuration does not fit the tokenizer.
    """
    from safetensors.torch import save_file

    from sharpening.rewards.lean_open_clip import open_clip

    text_cfg = {**model_cfg["text_cfg"], "hf_tokenizer_name": "local"}
    custom_text = isinstance(model, open_clip.CustomTextCLIP)
    check_text_config(text_cfg, tokenizer)
    config = {
        "model_cfg": {**model_cfg, "text_cfg": text_cfg, "custom_text": custom_text},
        "preprocess_cfg": preprocess_cfg,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    # open_clip only warns when a folder has no weights, and leaves the model random: loading now rules that out.
    open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    return folder


def check_text_config(text_cfg: dict[str, Any], tokenizer: Any) -> None:
    """Refuse a text configuration that would read the tokenizer's sequences wrongly.

    Args:
        text_cfg: open_clip's text configuration.
        tokenizer: a transformers tokenizer.

    Raises:
        ValueError: if the vocabulary is too small, a special token is missing, or pooling misses the end of sequence.
    """
    vocab_size = text_cfg.get("vocab_size", 49408)
    if len(tokenizer) > vocab_size:
        raise ValueError(f"text_cfg.vocab_size is {vocab_size}, but the tokenizer has {len(tokenizer)} entries")
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, role) is None:
            raise ValueError(f"the tokenizer has no {role.removesuffix('_id')}")
    pool_type = text_cfg.get("pool_type", "argmax")
    if pool_type == "argmax" and tokenizer.eos_token_id != len(tokenizer) - 1:
        raise ValueError(
            f"pool_type 'argmax' takes the highest id, but the tokenizer's end of sequence is {tokenizer.eos_token_id} "
            f"of {len(tokenizer)}: make it the last entry, or use pool_type 'eos' with eos_id"
        )
    if pool_type == "eos" and text_cfg.get("eos_id", 2) != tokenizer.eos_token_id:
        raise ValueError(f"text_cfg.eos_id must be {tokenizer.eos_token_id}, the tokenizer's end of sequence")
