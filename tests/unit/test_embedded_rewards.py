"""The embedded world's learnt rewards and its exact one: numbers, independence of batches, gradients, training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL
from scipy.special import erf

from sharpening.data.source import Batch
from sharpening.rewards import load_reward
from sharpening.rewards.clip import ClipScorer, RewardModelError
from sharpening.rewards.embedded import (
    AttributeScorer,
    CompositionalModels,
    CompositionalScorer,
    EmbeddedScorer,
    FeatureReader,
)
from sharpening.shapes.assets import clip_folder, heads_folder, pipeline_folder
from sharpening.shapes.benchmark import excluded_prompts, training_scene
from sharpening.shapes.degradations import KINDS, degrade
from sharpening.shapes.preference_training import Preferences, accuracy, fit, read_preferences, retrain
from sharpening.shapes.ranked_images import ranked_degradations, ranked_renders
from sharpening.shapes.render import render
from sharpening.shapes.reward_heads import HEADS, RewardHead, load_heads

PROMPTS = ["a red circle", "a blue square to the left of a green cross", "two dotted pink triangles", "nonsense"]


@pytest.fixture(scope="module")
def compositional() -> CompositionalScorer:
    return CompositionalScorer()


@pytest.fixture(scope="module")
def reader() -> FeatureReader:
    return FeatureReader()


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    images = np.stack([render(training_scene(rng)) for _ in range(count)])
    return images, [PROMPTS[i % len(PROMPTS)] for i in range(count)]


def as_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def head_in_numpy(weights: dict[str, np.ndarray], image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """`RewardHead` from its published equations: GRU (Cho et al. 2014, PyTorch's gate order r, z, n), MLP, scale."""
    seen = image @ weights["image.weight"].T + weights["image.bias"]
    joint = 0.5 * seen * (1 + erf(seen / np.sqrt(2)))
    if "text.weight" in weights:
        w_x, w_h = weights["reader.weight_ih_l0"], weights["reader.weight_hh_l0"]
        b_x, b_h = weights["reader.bias_ih_l0"], weights["reader.bias_hh_l0"]
        hidden = np.zeros((len(tokens), w_h.shape[1]))
        for x in tokens.swapaxes(0, 1):
            (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(x @ w_x.T + b_x, 3, 1), np.split(hidden @ w_h.T + b_h, 3, 1)
            update = sigmoid(x_z + h_z)
            hidden = (1 - update) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + update * hidden
        text = hidden @ weights["text.weight"].T + weights["text.bias"]
        joint = np.concatenate([seen, text, seen * text], 1)
    inner = joint @ weights["judge.0.weight"].T + weights["judge.0.bias"]
    inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
    logits = (inner @ weights["judge.2.weight"].T + weights["judge.2.bias"])[:, 0]
    zero, one = weights["scale"]
    return (logits - zero) / (one - zero)


def features_by_open_clip(images: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """What heads read, through open_clip's own `forward_intermediates`."""
    name = f"local-dir:{clip_folder()}"
    model = open_clip.create_model(name, require_pretrained=True).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = model.forward_intermediates(image=pixels, text=open_clip.get_tokenizer(name)(prompts))
        tokens = model.ln_final(found["text_intermediates"][-1]).double().numpy()
    embedding = 8 * found["image_features"].double().numpy()
    columns = [embedding]
    for stage in found["image_intermediates"][:3]:
        values = stage.double().numpy().reshape(len(images), stage.shape[1], -1)
        columns += [values.mean(2), np.sqrt(values.var(2, ddof=1) + 1e-4)]
    return np.concatenate(columns, 1), tokens


@pytest.mark.parametrize("name", HEADS)
def test_score_is_the_heads_arithmetic_on_clips_features(name: str) -> None:
    images, prompts = pictures(6)
    image, tokens = features_by_open_clip(images, prompts)
    saved = torch.load if False else __import__("safetensors.numpy", fromlist=["load_file"]).load_file
    weights = {key: value.astype(np.float64) for key, value in saved(heads_folder() / f"{name}.safetensors").items()}
    expected = head_in_numpy(weights, image, tokens)
    scores = load_reward(f"embedded-{name}").score(images, prompts)
    assert scores.failures == {}
    np.testing.assert_allclose(scores.values, expected, atol=2e-4)
    assert np.ptp(expected) > 0.05
