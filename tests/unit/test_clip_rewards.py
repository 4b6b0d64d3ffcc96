"""Aesthetic, HPSv2 and PickScore on small checkpoints of the public layouts, against the published inference code."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import transforms

from sharpening.rewards import RewardModelError
from sharpening.rewards.aesthetic import AestheticScorer
from sharpening.rewards.hpsv2 import HpsScorer
from sharpening.rewards.pickscore import PickScorer
from tests.small_clip import make_clip_folder
from tests.small_rewards import (
    HPS_ARCHITECTURE,
    head_state,
    make_hps_checkpoint,
    make_pickscore_folder,
    register_hps_architecture,
)

PROMPTS = ["a red circle", "A RED circle, left of a square", "zebra", "a b c d e f g h i j k l m n o p q r s t " * 6]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(32, 32), (96, 96), (64, 70), (83, 47)]  # of 64 × 70, three columns too many are left to crop


def random_images(size: tuple[int, int], count: int = 4) -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), np.uint8)
    pictures = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in rough]
    return np.stack([np.asarray(picture) for picture in pictures])


# --- aesthetic


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_folder(tmp_path_factory.mktemp("models") / "clip", image_size=32)


def published_head(state: dict[str, torch.Tensor], layout: str) -> nn.Module:
    """The modules of LAION's repositories."""
    width = state["weight"].shape[1] if layout == "linear" else state["layers.0.weight"].shape[1]
    if layout == "linear":
        head: nn.Module = nn.Linear(width, 1)
        head.load_state_dict(state)
        return head.eval()
    relu = [nn.ReLU()] if layout == "relu" else []
    layers = nn.Sequential(
        nn.Linear(width, 1024), *relu, nn.Dropout(0.2), nn.Linear(1024, 128), *relu, nn.Dropout(0.2),
        nn.Linear(128, 64), *relu, nn.Dropout(0.1), nn.Linear(64, 16), *relu, nn.Linear(16, 1),
    )  # fmt: skip
    layers.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    return layers.eval()


@pytest.mark.parametrize("layout", ["linear", "mlp", "relu"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_aesthetic_is_laions_head_on_unit_embeddings(clip: Path, tmp_path: Path, layout: str, suffix: str) -> None:
    state = head_state(layout, 64)
    path = tmp_path / f"head{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    images = random_images((32, 32))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    with torch.no_grad():
        embeddings = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images]))
        embeddings /= embeddings.norm(dim=-1, keepdim=True)
        expected = published_head(state, layout)(embeddings)[:, 0].numpy()
    scores = AestheticScorer(str(clip), str(path)).score(images, PROMPTS)
    np.testing.assert_allclose(scores.values, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_aesthetic_refuses_what_is_no_head_for_this_clip(clip: Path, tmp_path: Path) -> None:
    def refusal(state: dict[str, torch.Tensor]) -> str:
        torch.save(state, tmp_path / "head.pth")
        with pytest.raises(RewardModelError) as error:
            AestheticScorer(str(clip), str(tmp_path / "head.pth"))
        assert error.value.option == "reward_checkpoint"
        return str(error.value)

    state = head_state("mlp", 64)
    assert "head.pth lacks layers.6.bias; pass one of LAION's heads for 64-d" in refusal(
        {name: value for name, value in state.items() if name != "layers.6.bias"}
    )
    assert "weight of shape [1, 768] where [1, 64] is expected" in refusal(head_state("linear", 768))
    assert "layers.0.weight of shape [1024, 768] where [1024, 64] is expected" in refusal(head_state("mlp", 768))
    assert "holds layers.1.weight, which no such model has" in refusal(state | {"layers.1.weight": torch.zeros(2)})


# --- HPSv2


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return register_hps_architecture(tmp_path_factory.mktemp("architectures"))


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hps_checkpoint(tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt")


def test_an_architectures_weights_are_openais_with_openais_gelu(
    architecture: str, hps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip.pretrained import _PRETRAINED

    published = {"file": str(hps), "quick_gelu": True, "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    monkeypatch.setitem(_PRETRAINED, architecture, {"openai": published})
    torch.save(head_state("linear", 32), tmp_path / "head.pth")
    images = random_images((32, 32))
    model = open_clip.CLIP(**HPS_ARCHITECTURE, quick_gelu=True)
    model.load_state_dict(torch.load(hps, weights_only=True)["state_dict"])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = published_head(head_state("linear", 32), "linear")(model.encode_image(pixels, normalize=True))[:, 0]
    scores = AestheticScorer(architecture, str(tmp_path / "head.pth")).score(images, PROMPTS)
    np.testing.assert_allclose(scores.values, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_hps_is_the_published_inference(architecture: str, hps: Path, size: tuple[int, int]) -> None:
    model = open_clip.CLIP(**HPS_ARCHITECTURE)
    model.load_state_dict(torch.load(hps, weights_only=True)["state_dict"])
    preprocess = transforms.Compose([  # hpsv2/src/open_clip/transform.py: floats first
        transforms.ToTensor(), transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(32), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    images = random_images(size)
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(Image.fromarray(i)) for i in images]), normalize=True)
        text = model.encode_text(open_clip.SimpleTokenizer()(PROMPTS), normalize=True)
    expected = 100 * (image * text).sum(-1).numpy()
    scores = HpsScorer(architecture, str(hps)).score(images, PROMPTS)
    np.testing.assert_allclose(scores.values, expected, atol=1e-3)
    assert np.ptp(expected) > 0.5


def test_hps_refuses_another_checkpoint(architecture: str, hps: Path, tmp_path: Path) -> None:
    state = torch.load(hps, weights_only=True)["state_dict"]
    path = tmp_path / "HPS.pt"

    def refusal() -> str:
        with pytest.raises(RewardModelError) as error:
            HpsScorer(architecture, str(path))
        assert error.value.option == "reward_checkpoint"
        return str(error.value)

    torch.save({"state_dict": {name: value for name, value in state.items() if name != "visual.proj"}}, path)
    assert "HPS.pt does not load" in refusal()
    assert 'Missing key(s) in state_dict: "visual.proj"' in refusal()
    torch.save({"state_dict": state | {"visual.proj": torch.zeros(64, 16)}}, path)
    assert "size mismatch for visual.proj" in refusal()
    torch.save({"state_dict": state | {"visual.other": torch.zeros(1)}}, path)
    assert '"visual.other"' in refusal()
    torch.save({"state_dict": state, "optimizer": Path("pickled")}, path)
    assert "HPS.pt holds pickled Python objects besides tensors" in refusal()
    assert "safetensors.torch.save_file" in refusal()
    path.write_bytes(hps.read_bytes()[:-1000])
    assert "HPS.pt is truncated or no torch file" in refusal()
    save_file({name: value for name, value in state.items() if name != "visual.proj"}, tmp_path / "hps.safetensors")
    path = tmp_path / "hps.safetensors"
    assert "hps.safetensors lacks visual.proj; pass the weights of this architecture" in refusal()


# --- PickScore


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pickscore_folder(tmp_path_factory.mktemp("models") / "pickscore")


@pytest.fixture(scope="module")
def pick_scorer(pick: Path) -> PickScorer:
    return PickScorer(str(pick))


@pytest.mark.parametrize("size", SIZES)
def test_pickscore_is_the_readmes_inference(pick: Path, pick_scorer: PickScorer, size: tuple[int, int]) -> None:
    from transformers import AutoModel, AutoProcessor

    processor, model = AutoProcessor.from_pretrained(pick), AutoModel.from_pretrained(pick).eval()
    images, expected = random_images(size), []
    for image, prompt in zip(images, PROMPTS, strict=True):
        options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        with torch.no_grad():
            seen = model.get_image_features(**processor(images=[Image.fromarray(image)], **options)).pooler_output
            read = model.get_text_features(**processor(text=prompt, **options)).pooler_output
            seen, read = seen / torch.norm(seen, dim=-1, keepdim=True), read / torch.norm(read, dim=-1, keepdim=True)
            expected.append((model.logit_scale.exp() * (read @ seen.T)[0]).item())
    scores = pick_scorer.score(images, PROMPTS)
    np.testing.assert_allclose(scores.values, expected, atol=1e-3)
    assert np.ptp(expected) > 0.1


def test_pickscore_weights_may_come_from_another_file(pick: Path, tmp_path: Path) -> None:
    other = make_pickscore_folder(tmp_path / "other", seed=1)
    images = random_images((32, 32))
    torch.save(load_file(other / "model.safetensors"), tmp_path / "tuned.pt")
    swapped = PickScorer(str(pick), str(tmp_path / "tuned.pt")).score(images, PROMPTS).values
    np.testing.assert_array_equal(swapped, PickScorer(str(other)).score(images, PROMPTS).values)


def test_pickscore_refuses_another_model(pick: Path, tmp_path: Path) -> None:
    state = load_file(pick / "model.safetensors")

    def refusal(changed: dict[str, torch.Tensor], name: str = "tuned.pt") -> str:
        torch.save(changed, tmp_path / name)
        with pytest.raises(RewardModelError) as error:
            PickScorer(str(pick), str(tmp_path / name))
        assert error.value.option == "reward_checkpoint"
        return str(error.value)

    key = "vision_model.encoder.layers.1.mlp.fc1.weight"
    assert f"tuned.pt lacks {key}; pass" in refusal({name: value for name, value in state.items() if name != key})
    assert key in refusal(state | {key: torch.zeros(3, 48)})
    assert "holds, where no CLIPModel does, extra.weight" in refusal(state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(RewardModelError, match="no folder absent; pass a folder or a hub id"):
        PickScorer("absent")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "bert" / "model.safetensors")
    with pytest.raises(RewardModelError, match="is of a bert model; pass the folder of a transformers CLIPModel"):
        PickScorer(str(tmp_path / "bert"))
