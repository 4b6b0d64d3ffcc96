"""Model families, each seen as a policy (`sharpening.policies.base.Policy`). Imports no torch by itself."""

from __future__ import annotations

import importlib
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sharpening.checks import ModelFolderError, check_pipeline_folder, check_weights, read_json

if TYPE_CHECKING:
    import torch

    from sharpening.policies.base import Policy

FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "PixArtSigmaPipeline": "pixart",
}
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


def guidance_of(folder: str | Path) -> Literal["pair", "told", "none"]:
    """How a model is guided.

    Args:
        folder: a pipeline folder of a known family.

    Returns:
        "pair": prompt and empty prompt are contrasted, two evaluations a prediction; "told": the denoiser is told the
        scale, one evaluation; "none": guidance is distilled into it at one scale.

    Raises:
        ModelFolderError: if the folder is absent, incomplete, cut off or of an unknown family.
    """  # noqa: DOC502
    if family_of(folder) != "flux":
        return "pair"
    return "told" if read_json(Path(folder) / "transformer" / "config.json").get("guidance_embeds") else "none"


def native_resolution(folder: str | Path) -> int | None:
    """Pixels on a side of the images that a model was made for.

    Args:
        folder: a pipeline folder.

    Returns:
        The denoiser's sample size times the VAE's downsampling (for FLUX, whose transformer has none, the VAE's sample
        size); None where the folder's JSON does not say.
    """
    folder = Path(folder)
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    try:
        denoiser, vae = (read_json(folder / name / "config.json") for name in (part, "vae"))
        if "sample_size" not in denoiser:
            return int(vae["sample_size"])
        return int(denoiser["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (ModelFolderError, KeyError, TypeError, ValueError):
        return None


def resolution_steps(folder: str | Path) -> tuple[int, int | None] | None:
    """Which sizes of images a model can draw: sides that are multiples of a number of pixels, for some up to a limit.

    Args:
        folder: a pipeline folder.

    Returns:
        The number: the VAE's downsampling times the side, in latent pixels, of what the denoiser handles as one (its
        patches, and where its input has more channels than the latents have, the squares that are packed into them, as
        FLUX's are). And the largest side: that of SD3's table of positions, None for models that have no table. None
        altogether where the folder's JSON does not say.
    """
    folder = Path(folder)
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    try:
        denoiser, vae = (read_json(folder / name / "config.json") for name in (part, "vae"))
        channels = int(vae.get("latent_channels", 4))  # AutoencoderKL's default
        packed = isqrt(int(denoiser.get("in_channels", channels)) // channels)
        patch = int(denoiser.get("patch_size") or 1)
        step = packed * patch * 2 ** (len(vae["block_out_channels"]) - 1)
        positions = denoiser.get("pos_embed_max_size")
        return step, None if positions is None else int(positions) * step
    except (ModelFolderError, KeyError, TypeError, ValueError):
        return None


def check_vae(folder: str | Path, vae: str | Path) -> None:
    """Check that a VAE's folder is whole and that its latents have the shape of a pipeline's own VAE's.

    Args:
        folder: a pipeline folder of a known family.
        vae: a folder that `AutoencoderKL.save_pretrained` wrote.

    Raises:
        ModelFolderError: if the VAE is absent, incomplete, cut off, of another kind, or does not fit.
    """
    config, own = (read_json(place / "config.json") for place in (Path(vae), Path(folder) / "vae"))
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ModelFolderError(f"{vae} holds a {kind}, no AutoencoderKL; pass a VAE that was made for this model")
    check_weights(Path(vae))
    found, wanted = _latents(config), _latents(own)
    if found != wanted:
        raise ModelFolderError(
            f"{vae} has latents of {found[0]} channels at 1/{found[1]} of the pixels, but the model's have {wanted[0]} "
            f"at 1/{wanted[1]}; pass a VAE that was made for this model"
        )


def _latents(config: dict[str, Any]) -> tuple[int, int]:
    """Channels and downsampling of a VAE; where its configuration leaves them out, AutoencoderKL's defaults."""
    return int(config.get("latent_channels", 4)), 2 ** (len(config.get("block_out_channels", (64,))) - 1)


def load_policy(
    folder: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    resolution: int | None = None,
    vae: str | Path | None = None,
) -> Policy:
    """Load a pipeline folder as a policy; the family is recognised by its `model_index.json`.

    Args:
        folder: a folder that `save_pretrained` of a diffusers pipeline wrote.
        device: where the model goes.
        dtype: float type of the weights; None means float32.
        resolution: width and height of images in pixels; None means the model's own.
        vae: folder of the VAE that the policy has instead of the pipeline's own; None means that one.

    Returns:
        The policy.

    Raises:
        ModelFolderError: if a folder is absent, incomplete or cut off, of an unknown family, or the VAE does not fit.
    """  # noqa: DOC502
    module = importlib.import_module(f"sharpening.policies.{family_of(folder)}")
    if vae is not None:
        check_vae(folder, vae)
        resolution = resolution or native_resolution(folder)  # FLUX's stands in the configuration of its own VAE
    return module.load(folder, device=device, dtype=dtype, resolution=resolution, vae=vae)
