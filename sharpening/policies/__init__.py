"""Model families, each seen as a policy (`sharpening.policies.base.Policy`). Imports no torch by itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from sharpening.checks import ModelFolderError, check_pipeline_folder

if TYPE_CHECKING:
    import torch

    from sharpening.policies.base import Policy

FAMILIES = {"StableDiffusionXLPipeline": "sdxl"}
"""Pipeline class in `model_index.json` → module of `sharpening.policies` that adapts it."""


def family_of(folder: str | Path) -> str:
    """Check that a pipeline folder is whole and of a known family.

    Args:
        folder: a folder that `save_pretrained` of a diffusers pipeline wrote.

    Returns:
        The family's name, a value of `FAMILIES`.

    Raises:
        ModelFolderError: if the folder is absent, incomplete, cut off or of an unknown family.
    """
    name = check_pipeline_folder(folder)["_class_name"]
    if name not in FAMILIES:
        raise ModelFolderError(f"{folder} holds a {name}; pass a folder of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def load_policy(folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Policy:
    """Load a pipeline folder as a policy; the family is recognised by its `model_index.json`.

    Args:
        folder: a folder that `save_pretrained` of a diffusers pipeline wrote.
        device: where the model goes.
        dtype: float type of the weights; None means float32.

    Returns:
        The policy.

    Raises:
        ModelFolderError: if the folder is absent, incomplete, cut off or of an unknown family.
    """  # noqa: DOC502
    module = importlib.import_module(f"sharpening.policies.{family_of(folder)}")
    return module.load(folder, device=device, dtype=dtype)
