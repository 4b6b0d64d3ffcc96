"""Cheap checks of model folders, before anything heavy is imported: headers and JSON only, no torch.

Messages read "what is wrong; what to do", on one line.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

StrPath = str | os.PathLike[str]

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
"""`owner/name` of a repository on the Hugging Face hub."""

UNLOADED = ("safety_checker",)
"""Components that no policy loads, and that a pipeline folder may lack though its `model_index.json` lists them."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
}  # fmt: skip
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip archives
_MAX_HEADER = 100_000_000  # bytes; safetensors itself refuses larger headers
_NO_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "FeatureExtractor", "ImageProcessor", "Processor")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
# The files that open_clip looks for, in its order.
_CLIP_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip


class ModelFolderError(ValueError):
    """A model folder or one of its files is missing, truncated or malformed."""


def check_safetensors(path: StrPath) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check that a safetensors file is whole: its header parses and its length is what the header says.

    Args:
        path: the file. Tensor data is not read.

    Returns:
        Type (`"F32"`, …) and shape of each tensor by name.

    Raises:
        ModelFolderError: if the file is absent, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing; copy or download the model again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER:
            raise ModelFolderError(f"{path} ({size} bytes) is no safetensors file; save or download it again")
        if 8 + length > size:
            raise ModelFolderError(f"{path} is truncated inside its header; copy or download it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{path} has a malformed safetensors header; save or download it again") from error
    expected = 8 + length + max((end for _, _, end in tensors.values()), default=0)
    if size != expected:
        what = "is truncated" if size < expected else "has bytes past its tensors"
        raise ModelFolderError(f"{path} {what}: {size} bytes, {expected} expected; copy or download it again")
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}


def _tensor(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int]:
    dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if begin < 0 or end < begin or (dtype in _BITS and (end - begin) * 8 != math.prod(shape) * _BITS[dtype]):
        raise ValueError("offsets do not fit the shape")
    return dtype, shape, end


def read_json(path: StrPath) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        ModelFolderError: if the file is absent, or holds no JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(f"{path} is missing or unreadable ({error.strerror}); copy the model again") from error
    except ValueError as error:
        raise ModelFolderError(f"{path} is not valid JSON; copy or download the model again") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} holds no JSON object; copy or download the model again")
    return value


def check_pipeline_folder(path: StrPath) -> dict[str, Any]:
    """Check a diffusers pipeline folder: `model_index.json`, each component's folder, configuration and weights.

    Args:
        path: the folder that `DiffusionPipeline.save_pretrained` wrote.

    Returns:
        `model_index.json`.

    Raises:
        ModelFolderError: naming the first file that is missing, truncated or malformed.
    """
    folder = _folder(path, "a pipeline")
    if not (folder / "model_index.json").is_file():
        raise ModelFolderError(f"{folder} has no model_index.json; pass a folder saved by a diffusers pipeline")
    index = read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise ModelFolderError(f"{folder / 'model_index.json'} names no _class_name; pass a diffusers pipeline folder")
    for name, entry in index.items():
        listed = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
        if listed and (name not in UNLOADED or (folder / name).is_dir()):
            _check_component(folder / name, entry[1])
    return index


def _check_component(folder: Path, class_name: str) -> None:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is missing, but model_index.json lists it; copy or download the model again")
    if "Tokenizer" in class_name:
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            raise ModelFolderError(f"{folder} holds no tokenizer vocabulary; copy or download the model again")
    elif class_name.endswith("Scheduler"):
        read_json(folder / "scheduler_config.json")
    elif not class_name.endswith(_NO_WEIGHTS):
        read_json(folder / "config.json")
        check_weights(folder)


def check_weights(folder: Path) -> None:
    """Check the weights of one model: every shard that an index lists, and every weights file that is there.

    Args:
        folder: one component's folder.

    Raises:
        ModelFolderError: if there are no weights, a shard is missing, or a file is truncated.
    """
    shards: set[str] = set()
    for index in sorted(folder.glob("*.index*.json")):
        shards.update(read_json(index).get("weight_map", {}).values())
    for shard in sorted(shards):
        if not (folder / shard).is_file():
            raise ModelFolderError(f"{folder / shard} is missing, but an index lists it; download the model again")
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        check_safetensors(file)
    if not files:
        _check_pickles(folder, sorted(folder.glob("*.bin")))


def _check_pickles(folder: Path, files: list[Path]) -> None:
    if not files:
        raise ModelFolderError(f"{folder} has no weights (*.safetensors); copy or download the model again")
    for file in files:
        check_torch_file(file)


def check_torch_file(path: StrPath) -> None:
    """Check that a file is one that `torch.save` wrote, as far as that can be told without reading it.

    Args:
        path: the file.

    Raises:
        ModelFolderError: if the file is absent, truncated or no torch file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing; copy or download the model again")
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_TORCH)) == _LEGACY_TORCH
    # torch.save writes zip archives, whose directory stands at the end: a truncated one is not a zip file.
    if not legacy and not zipfile.is_zipfile(path):
        raise ModelFolderError(f"{path} is truncated or no torch file; copy or download it again")


def check_clip_folder(path: StrPath) -> dict[str, Any]:
    """Check an open_clip model folder in the `local-dir:` layout.

    Args:
        path: folder with `open_clip_config.json`, weights and, if the configuration asks for one, a tokenizer.

    Returns:
        `open_clip_config.json`.

    Raises:
        ModelFolderError: naming the first file that is missing, truncated or malformed.
    """
    folder = _folder(path, "an open_clip model")
    config_path = folder / "open_clip_config.json"
    if not config_path.is_file():
        raise ModelFolderError(f"{folder} has no open_clip_config.json; pass a folder in open_clip's local-dir layout")
    config = read_json(config_path)
    model_cfg = config.get("model_cfg")
    parts = ("vision_cfg", "text_cfg")
    if not isinstance(model_cfg, dict) or not all(isinstance(model_cfg.get(part), dict) for part in parts):
        raise ModelFolderError(f"{config_path} lacks model_cfg with {' and '.join(parts)}; save the model again")
    weights = next((folder / name for name in _CLIP_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:  # open_clip would only warn, and leave the model random
        raise ModelFolderError(f"{folder / _CLIP_WEIGHTS[0]} is missing; copy or download the model again")
    if weights.suffix == ".safetensors":
        check_safetensors(weights)
    else:
        _check_pickles(folder, [weights])
    if model_cfg["text_cfg"].get("hf_tokenizer_name") and not any((folder / n).is_file() for n in _TOKENIZER_FILES):
        raise ModelFolderError(f"{folder / _TOKENIZER_FILES[0]} is missing; copy or download the model again")
    return config


def local_path(value: str, remedy: str) -> Path | None:
    """The file or folder that a value names, or None when it is a hub id.

    `owner/name` is a hub id unless something of that name, or a folder called `owner`, lies here.

    Args:
        value: a path or a hub id.
        remedy: what to do if it is neither.

    Returns:
        The path, or None.

    Raises:
        ModelFolderError: if it is neither, or a hub id that offline mode cannot reach and that is not in the cache.
    """
    path = Path(value).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(value) or path.parent.exists():
        raise ModelFolderError(f"there is no folder {value}; {remedy}")
    check_hub_cache(value)
    return None


def check_hub_cache(value: str) -> None:
    """Refuse a hub id that offline mode cannot reach and that is not in the cache.

    Args:
        value: `owner/name`.

    Raises:
        ModelFolderError: if it is neither in reach nor in the cache.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        return
    home = Path(os.environ.get("HF_HOME", Path("~/.cache/huggingface").expanduser()))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    if not (cache / f"models--{value.replace('/', '--')}").is_dir():
        raise ModelFolderError(f"HF_HUB_OFFLINE is set and {value} is not in the cache; pass a model folder")


def _folder(path: StrPath, what: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.exists():
        raise ModelFolderError(f"there is no folder {folder}; pass {what} folder")
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is no folder; pass {what} folder")
    return folder
