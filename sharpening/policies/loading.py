"""A pipeline folder in, a diffusers pipeline in one float type out, without progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from sharpening.checks import ModelFolderError


def load_pipeline(
    kind: type[DiffusionPipeline],
    folder: str | Path,
    device: str,
    dtype: torch.dtype | None,
    vae: str | Path | None = None,
    **arguments: Any,
) -> DiffusionPipeline:
    """Load a pipeline folder.

    Args:
        kind: the pipeline's class.
        folder: a folder that its `save_pretrained` wrote.
        device: where the model goes.
        dtype: float type of the weights; None means float32. Beside float16 weights, a VAE that overflows in them stays
            in float32, as diffusers' SDXL pipeline has it (`force_upcast` in its configuration: SDXL's own VAE, but not
            the fp16-fixed one).
        vae: folder of an `AutoencoderKL` that takes the place of the pipeline's own.
        **arguments: further arguments of the class.

    Returns:
        The pipeline.

    Raises:
        ModelFolderError: if it cannot be loaded.
    """
    dtype = dtype or torch.float32
    types = {"default": dtype}
    if dtype == torch.float16 and _overflows(Path(folder) / "vae" if vae is None else Path(vae)):
        types["vae"] = torch.float32
    if dtype != torch.float32:  # diffusers' own default; versions without the argument ignore it
        arguments["dtype"] = types
    if vae is not None:
        arguments["vae"] = _load(AutoencoderKL, vae)
    pipeline = _load(kind, folder, **arguments)
    pipeline.set_progress_bar_config(disable=True)
    for name, module in pipeline.components.items():
        wanted = types.get(name, dtype)
        if isinstance(module, nn.Module) and module.dtype != wanted:
            module.to(wanted)
    return pipeline.to(device)


def _load(kind: Any, folder: str | Path, **arguments: Any) -> Any:
    """Load a pipeline or one of its models from its folder."""
    try:
        with no_progress_bars():
            return kind.from_pretrained(folder, local_files_only=True, **arguments)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFolderError(f"{folder} does not load ({reason}); copy the folder again") from error


def _overflows(vae: Path) -> bool:
    return bool(json.loads((vae / "config.json").read_text(encoding="utf-8")).get("force_upcast", True))


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and saving take a moment; their bars would only break up a run's log.

    Yields:
        Nothing.
    """
    bars = (diffusers_logging, transformers_logging)
    shown = [logging.is_progress_bar_enabled() for logging in bars]
    for logging in bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, was_shown in zip(bars, shown, strict=True):
            if was_shown:
                logging.enable_progress_bar()
