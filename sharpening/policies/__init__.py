"""Model families, each seen as a policy (`sharpening.policies.base.Policy`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from sharpening.policies.folders import check_pipeline_folder

if TYPE_CHECKING:
    import torch

    from sharpening.policies.base import Policy


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
    family = check_pipeline_folder(folder)
    module = importlib.import_module(f"sharpening.policies.{family}")
    return module.load(folder, device=device, dtype=dtype)
