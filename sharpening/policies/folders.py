"""Is this folder a whole diffusers pipeline? Answered from its files alone, without torch, before anything heavy."""

from __future__ import annotations

import json
from pathlib import Path

FAMILIES = {"StableDiffusionXLPipeline": "sdxl"}
"""Pipeline class in `model_index.json` → module of `sharpening.policies` that adapts it."""


class ModelFolderError(ValueError):
    """A model folder cannot be used; the message says why and what to do."""


def check_pipeline_folder(folder: str | Path) -> str:
    """Check that a pipeline folder is complete and of a known family.

    Args:
        folder: a folder that `save_pretrained` of a diffusers pipeline wrote.

    Returns:
        The family's name, a value of `FAMILIES`.

    Raises:
        ModelFolderError: if the folder is absent, incomplete, cut off or of an unknown family.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"there is no folder {folder}; pass one that a diffusers pipeline was saved to")
    index = _read_json(folder / "model_index.json")
    family = FAMILIES.get(index.get("_class_name", ""))
    if family is None:
        raise ModelFolderError(
            f"{folder} holds a {index.get('_class_name', 'pipeline without a class name')}; "
            f"pass a folder of {', '.join(FAMILIES)}"
        )
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and None not in entry:
            _check_component(folder / name, weights=not any(part in name for part in ("tokenizer", "scheduler")))
    return family


def _check_component(folder: Path, weights: bool) -> None:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder.parent} lacks the folder {folder.name}; copy the whole pipeline folder again")
    if not weights or folder.name == "feature_extractor":
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{folder} holds no safetensors weights; copy the whole pipeline folder again")
    for file in files:
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    """Compare a safetensors file's length with what its header promises."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length)) if 0 < length <= size - 8 else None
        except ValueError:
            header = None
    promised = None
    if isinstance(header, dict):
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        promised = 8 + length + max(ends, default=0)
    if promised != size:
        raise ModelFolderError(f"{file} is cut off or damaged; copy it again")


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{file.parent} has no {file.name}; pass the folder of a saved pipeline") from None
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{file} cannot be read ({error}); copy the pipeline folder again") from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{file} is not a pipeline's index; pass the folder of a saved pipeline")
    return content
