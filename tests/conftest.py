"""A small SDXL with random weights, and helpers that many tests share."""

from __future__ import annotations

import copy
import gc
import os
import secrets
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from sharpening.policies.sdxl import SDXLPolicy
    from sharpening.rewards.base import Scores

if "RAY_AUTH_MODE" not in os.environ:  # read when Ray is imported; left alone, a local Ray writes a token into the home
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


# A run starts a dozen processes, and each would compile this project for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Ray's workers are nice by default, so that on a machine that does anything else they starve, and tests with them.
os.environ.setdefault("RAY_worker_niceness", "0")

# Workers of pytest-xdist share the cores: two processes with two threads each on two cores get in each other's way.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray of their own in this process come before those that share one, which lasts."""
    items.sort(key=lambda item: item.get_closest_marker("own_ray") is None)


def pytest_collection_finish() -> None:
    """Leave what was imported by then out of every later search for garbage; a million objects take a second each."""
    gc.collect()
    gc.freeze()


def build_tokenizer(model_max_length: int = 16):  # noqa: ANN201
    """A CLIP tokenizer that knows letters only, so it needs no file."""
    from transformers import CLIPTokenizer

    symbols = [*string.ascii_lowercase, *string.digits, ","]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=model_max_length)


def build_pipeline(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionXLPipeline:
    """A real StableDiffusionXLPipeline with random weights: 64×64 images, 8×8×8 latents."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        projection_dim=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    vae = AutoencoderKL(
        sample_size=64,
        latent_channels=8,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.7,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pipeline, saved as a folder; do not change it."""
    folder = tmp_path_factory.mktemp("random-sdxl") / "pipeline"
    build_pipeline().save_pretrained(folder)
    return folder


_LOADED: dict[Path, Any] = {}


def fresh_policy(folder: Path) -> Any:
    """A pipeline's policy as if it had just been loaded: a copy of one that was, which takes half as long."""
    from sharpening.policies import load_policy

    if folder not in _LOADED:
        _LOADED[folder] = load_policy(folder)
    return copy.deepcopy(_LOADED[folder])


@pytest.fixture
def policy(pipeline_folder: Path) -> SDXLPolicy:
    """The small pipeline as a policy, fresh for each test."""
    return fresh_policy(pipeline_folder)


@pytest.fixture(scope="session")
def brightness() -> Callable[[np.ndarray, Sequence[str]], Scores]:
    """A reward that needs no model: mean brightness of the red channel, in per cent."""
    from sharpening.rewards.base import Scores

    def score(images: np.ndarray, prompts: Sequence[str]) -> Scores:
        assert images.dtype == np.uint8
        assert len(images) == len(prompts)
        return Scores(images[..., 0].mean(axis=(1, 2), dtype=np.float64).astype(np.float32) / 2.55)

    return score
