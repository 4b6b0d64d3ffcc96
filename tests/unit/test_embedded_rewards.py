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
from safetensors.numpy import load_file
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
    saved = load_file(heads_folder() / f"{name}.safetensors")
    weights = {key: value.astype(np.float64) for key, value in saved.items()}
    expected = head_in_numpy(weights, image, tokens)
    scores = load_reward(f"embedded-{name}").score(images, prompts)
    assert scores.failures == {}
    np.testing.assert_allclose(scores.values, expected, atol=2e-4)
    assert np.ptp(expected) > 0.05


def test_compositional_is_the_weighted_sum_of_its_three_heads(compositional: CompositionalScorer) -> None:
    images, prompts = pictures(5)
    each = np.stack([load_reward(f"embedded-{name}").score(images, prompts).values for name in compositional.names])
    np.testing.assert_allclose(compositional.score(images, prompts).values, each.mean(0), atol=1e-5)
    weighted = CompositionalScorer(weights=(0.5, 0.0, 2.0)).score(images, prompts).values
    np.testing.assert_allclose(weighted, 0.5 * each[0] + 2 * each[2], atol=1e-5)
    with pytest.raises(ValueError, match="pass one for each of attribute, spatial, non_spatial"):
        CompositionalScorer(weights=(1.0,))


def test_scores_do_not_depend_on_the_batch_to_the_last_bit(compositional: CompositionalScorer) -> None:
    images, prompts = pictures(41)
    together = compositional.score(images, prompts).values
    assert compositional.batch_size == 32
    for some in ([0], [40], [3, 40, 17], list(range(40, 7, -1))):
        scores = compositional.score(images[some], [prompts[i] for i in some]).values
        assert scores.tobytes() == together[some].tobytes()


class NeighbourlyHeads(AttributeScorer):
    """A machine on which heads, but not CLIP, mix the rows of batches larger than 4."""

    def _score_features(self, features: torch.Tensor, text: np.ndarray) -> np.ndarray:
        answers = super()._score_features(features, text)
        return answers + 1e-12 * features.mean().item() if len(text) > 4 else answers


def test_batch_size_falls_until_heads_keep_rows_apart() -> None:
    assert NeighbourlyHeads().batch_size == 4


@pytest.mark.parametrize("name", ["clip", "embedded-aesthetic", "embedded-compositional"])
@pytest.mark.parametrize("size", [(64, 64), (96, 80)])
def test_differentiable_form_equals_the_score(name: str, size: tuple[int, int]) -> None:
    scorer = load_reward(name)
    rng = np.random.default_rng(3)
    smooth = rng.integers(0, 256, (4, 5, 5, 3)).repeat(20, 1).repeat(20, 2)
    images = smooth[:, : size[0], : size[1]].astype(np.uint8)
    expected = scorer.score(images, PROMPTS).values
    values = scorer.differentiable(as_pixels(images), PROMPTS)
    # Images of another size are rounded after resizing, which the differentiable form does not.
    tolerance = 2e-3 if size == (64, 64) else 0.02
    np.testing.assert_allclose(values.numpy(), expected, atol=tolerance * (50 if name == "clip" else 1))
    with pytest.raises(ValueError, match="4 images need as many prompts, not 1"):
        scorer.differentiable(as_pixels(images), PROMPTS[:1])


@pytest.mark.parametrize("name", ["clip", *(f"embedded-{head}" for head in (*HEADS, "compositional"))])
def test_gradient_to_the_pixels_is_that_of_finite_differences(name: str) -> None:
    scorer = load_reward(name)
    for module in (scorer._model, *getattr(scorer, "heads", {}).values()):
        module.double()  # differences of float32 scores drown in rounding
    mean, std = scorer._preprocess.mean.double(), scorer._preprocess.std.double()

    def scores(pixels: torch.Tensor) -> torch.Tensor:
        features = scorer._features((pixels - mean) / std)
        text = np.stack([scorer._text(prompt) for prompt in PROMPTS])
        return scorer._compare_tensors(features, torch.from_numpy(text))

    torch.manual_seed(0)
    pixels = 0.2 + 0.6 * as_pixels(pictures(4)[0])
    direction = torch.randn(pixels.shape, dtype=torch.float64)
    step = 1e-7
    high, low = scores(pixels + step * direction), scores(pixels - step * direction)
    expected = ((high - low) / (2 * step)).numpy()
    for module in (scorer._model, *getattr(scorer, "heads", {}).values()):
        module.float()
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.differentiable(leaf, PROMPTS).sum(), leaf)
    slopes = (gradient * direction).sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(slopes, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    assert np.abs(expected).min() > 0


ACCURACY = {"attribute": 0.93, "spatial": 0.91, "non_spatial": 0.96}
"""Least share of fresh pairs of clean renders that a shipped head ranks rightly."""


@pytest.mark.parametrize("name", ACCURACY)
def test_shipped_compositional_heads_rank_fresh_renders(reader: FeatureReader, name: str) -> None:
    drawn = ranked_renders(name, 100, np.random.default_rng(123), excluded_prompts())
    pairs = read_preferences(reader, drawn.images, drawn.prompts, drawn.pairs)
    head = load_heads(heads_folder(), [name], clip_folder())[name]
    assert accuracy(head, pairs) > ACCURACY[name]
    assert len(pairs) > 100


def test_shipped_aesthetic_and_preference_heads_rank_degraded_pictures(reader: FeatureReader) -> None:
    vae = AutoencoderKL.from_pretrained(pipeline_folder() / "vae").eval()
    drawn = ranked_degradations(120, np.random.default_rng(123), excluded_prompts(), vae)
    pairs = read_preferences(reader, drawn.images, drawn.prompts, drawn.pairs)
    heads = load_heads(heads_folder(), ["aesthetic", "preference"], clip_folder())
    assert accuracy(heads["aesthetic"], pairs) > 0.93
    assert accuracy(heads["preference"], pairs) > 0.9


def test_clean_and_true_scores_one_and_its_rival_nought() -> None:
    drawn = ranked_renders("attribute", 80, np.random.default_rng(124), excluded_prompts())
    better, worse, captions = (list(column) for column in zip(*drawn.pairs, strict=True))
    scorer = AttributeScorer()
    prompts = [drawn.prompts[row] for row in captions]
    assert scorer.score(drawn.images[better], prompts).values.mean() == pytest.approx(1, abs=0.15)
    assert scorer.score(drawn.images[worse], prompts).values.mean() == pytest.approx(0, abs=0.15)


def test_degradations_grow_with_their_strength_and_vanish_at_nought() -> None:
    vae = AutoencoderKL.from_pretrained(pipeline_folder() / "vae").eval()
    images = pictures(len(KINDS))[0]
    errors = []
    for strength in (0.0, 0.4, 1.0):
        strengths = np.full(len(KINDS), strength)
        drawn = degrade(images, KINDS, strengths, vae, np.random.default_rng(1))
        assert drawn.dtype == np.uint8
        errors.append(np.abs(drawn.astype(float) - images).mean((1, 2, 3)))
    assert (errors[0][:-1] == 0).all()
    assert errors[0][-1] < 4  # the plain reconstruction
    assert (errors[1] > errors[0]).all()
    assert (errors[2] > errors[1]).all()


def test_damaged_heads_are_one_error_that_names_the_file(tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(heads_folder(), tmp_path / name))

    missing = damaged("missing")
    (missing / "attribute.safetensors").unlink()
    with pytest.raises(RewardModelError, match=r"attribute.safetensors is missing; copy or download"):
        AttributeScorer(str(missing))
    cut = damaged("cut") / "attribute.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(RewardModelError, match=r"attribute.safetensors is truncated"):
        AttributeScorer(str(cut.parent))
    bare = damaged("bare")
    (bare / "config.json").unlink()
    with pytest.raises(RewardModelError, match=r"config.json is missing"):
        AttributeScorer(str(bare))
    other = damaged("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"clip": "0" * 64}))
    with pytest.raises(
        RewardModelError, match="other read another CLIP .* run `python -m sharpening.shapes.train heads"
    ):
        AttributeScorer(str(other))
    foreign = damaged("foreign")
    shutil.copy(clip_folder() / "open_clip_model.safetensors", foreign / "attribute.safetensors")
    with pytest.raises(RewardModelError, match=r"attribute.safetensors holds no reward head; run `python"):
        AttributeScorer(str(foreign))


def test_not_finite_scores_are_failures() -> None:
    scorer = AttributeScorer()
    images, prompts = pictures(3)
    before = scorer.score(images, prompts).values
    token = scorer._tokenizer([prompts[1]])[0, 2]
    with torch.no_grad():
        scorer._model.token_embedding.weight[token] = torch.nan
    scorer._text.cache_clear()
    after = scorer.score(images[:2], [prompts[0].replace("red", "pink"), prompts[1]])
    assert after.failures == {1: "not finite"}
    assert np.isnan(after.values[1])
    assert len(before) == 3


def test_pairwise_cross_entropy_finds_the_odds_of_being_preferred() -> None:
    torch.manual_seed(0)
    rows = [(0, 1, 0)] * 3 + [(1, 0, 0)]
    winner, loser, caption = torch.tensor(rows).unbind(1)
    pairs = Preferences(torch.randn(2, 12), torch.randn(1, 5, 7).half(), winner, loser, caption)
    head = RewardHead(12, 7, width=8)
    fit(head, pairs, steps=300, seed=0, lr=1e-2, batch_size=512, weight_decay=0.0)
    first, second = head.logits(pairs.images, head.read(pairs.tokens.float()).expand(2, -1)).tolist()
    assert first - second == pytest.approx(np.log(3), abs=0.1)  # preferred three times out of four


def ground_pairs(count: int, seed: int) -> Batch:
    """A taste that no head has: the same scene on black before white."""
    rng = np.random.default_rng(seed)
    from dataclasses import replace

    scenes = [training_scene(rng) for _ in range(count)]
    images = [[render(replace(scene, background=ground)) for ground in ("black", "white")] for scene in scenes]
    return Batch(["a picture"] * count, np.array(images))


def test_retrained_heads_learn_a_new_kind_of_pairs(compositional: CompositionalScorer, reader: FeatureReader) -> None:
    known, fresh = ground_pairs(60, seed=0), ground_pairs(60, seed=1)
    rows = [(2 * i, 2 * i + 1, i) for i in range(60)]
    pairs = read_preferences(reader, fresh.images.reshape(-1, 64, 64, 3), fresh.prompts, rows)
    before = {key: value.clone() for key, value in compositional.heads["spatial"].state_dict().items()}
    tuned = retrain(compositional.heads, reader, known, steps=60, seed=0)
    again = retrain(compositional.heads, reader, known, steps=60, seed=0)
    for name, head in compositional.heads.items():
        assert accuracy(head, pairs) < 0.9
        assert accuracy(tuned[name], pairs) > 0.95
        for key, value in tuned[name].state_dict().items():
            assert torch.equal(value, again[name].state_dict()[key])
    for key, value in compositional.heads["spatial"].state_dict().items():
        assert torch.equal(value, before[key])


def test_iterpos_models_reward_retrain_and_carry_their_state() -> None:
    device = torch.device("cpu")
    models = CompositionalModels(device)
    images, prompts = pictures(4)
    pixels = as_pixels(images).requires_grad_()
    rewards = models.rewards(pixels, prompts)
    assert rewards.shape == (3, 4)
    np.testing.assert_allclose(
        rewards.mean(0).detach().numpy(), CompositionalScorer().score(images, prompts).values, atol=1e-3
    )
    (gradient,) = torch.autograd.grad(rewards.sum(), pixels)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    models.retrain(ground_pairs(20, seed=0), steps=20, seed=0)
    tuned = models.rewards(pixels, prompts)
    assert not torch.allclose(tuned, rewards)
    known, fresh = CompositionalModels(device), CompositionalModels(device)
    known.rewards(pixels, prompts)  # captions once read by the old heads must be read anew
    for other in (known, fresh):
        other.load_state(models.state())
        assert torch.equal(other.rewards(pixels, prompts), tuned)


def test_every_embedded_reward_has_a_name() -> None:
    for name in (*HEADS, "compositional"):
        assert isinstance(load_reward(f"embedded-{name}", device="cpu", batch_size=2), EmbeddedScorer)
    assert not isinstance(load_reward("clip"), EmbeddedScorer)
    assert isinstance(load_reward("embedded-aesthetic"), ClipScorer)
