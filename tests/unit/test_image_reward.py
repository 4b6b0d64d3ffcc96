"""ImageReward and IterComp's models on small checkpoints of the public layout, against their forward pass restated.

The vision tower of BLIP is timm's ViT, with the same names; the text encoder is written out here after
`ImageReward/models/BLIP/med.py`.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision import transforms

from sharpening.rewards import RewardModelError
from sharpening.rewards.compositional import CompositionalScorer
from sharpening.rewards.image_reward import ImageRewardScorer
from tests.small_rewards import (
    IMAGE,
    PATCH,
    TEXT_WIDTH,
    VISION_WIDTH,
    WORDS,
    image_reward_state,
    make_compositional_folder,
    make_image_reward_folder,
    write_vocabulary,
)

PROMPTS = ["a red circle", "Circles, left of a zebra", "a [ENC] square [DEC]", "a green circle left of a square " * 9]
PIECES = {"circles": ["circle", "##s"]}
SPECIAL = {"[DEC]": len(WORDS), "[ENC]": len(WORDS) + 1}


def tokens(prompt: str) -> tuple[Tensor, Tensor]:
    """What BERT's tokenizer makes of a prompt: ids padded to 35, and which of them are no padding."""
    words = [piece for word in prompt.replace(",", " ,").split() for piece in PIECES.get(word.lower(), [word])]
    ids = [SPECIAL.get(word, WORDS.index(word.lower()) if word.lower() in WORDS else 1) for word in words][:33]
    ids = [2, *ids, 3]
    padding = 35 - len(ids)
    return torch.tensor(ids + [0] * padding), torch.tensor([1] * len(ids) + [0] * padding)


def vision_states(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    vit = VisionTransformer(
        img_size=IMAGE, patch_size=PATCH, embed_dim=VISION_WIDTH, depth=2, num_heads=VISION_WIDTH // 64,
        num_classes=0, global_pool="", norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prefix = "blip.visual_encoder."
    vit.load_state_dict({name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})
    return vit.eval()(pixels)


def text_states(state: dict[str, Tensor], ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """A BERT whose layers attend to themselves, then to the image: `[T]`, `[T]`, `[S, V]` → `[T, D]`."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"blip.text_encoder.{name}.weight"].T + state[f"blip.text_encoder.{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
        return x * state[f"blip.text_encoder.{name}.weight"] + state[f"blip.text_encoder.{name}.bias"]

    def attend(name: str, x: Tensor, to: Tensor, bias: Tensor | float) -> Tensor:
        q, k, v = (linear(f"{name}.self.{part}", y) for part, y in (("query", x), ("key", to), ("value", to)))
        q, k, v = (y.view(len(y), TEXT_WIDTH // 64, 64).transpose(0, 1) for y in (q, k, v))
        mixed = (q @ k.transpose(1, 2) / 8 + bias).softmax(-1) @ v
        return norm(f"{name}.output.LayerNorm", linear(f"{name}.output.dense", mixed.transpose(0, 1).flatten(1)) + x)

    embeddings = "blip.text_encoder.embeddings"
    x = state[f"{embeddings}.word_embeddings.weight"][ids]
    x = norm("embeddings.LayerNorm", x + state[f"{embeddings}.position_embeddings.weight"][: len(ids)])
    for i in range(2):
        layer = f"encoder.layer.{i}"
        x = attend(f"{layer}.attention", x, x, -10000.0 * (1 - mask))
        x = attend(f"{layer}.crossattention", x, seen, 0.0)
        hidden = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", hidden) + x)
    return x


@torch.no_grad()
def published(state: dict[str, Tensor], images: np.ndarray, prompts: list[str]) -> np.ndarray:
    """`ImageReward.score`, one image at a time."""
    preprocess = transforms.Compose([
        transforms.Resize(IMAGE, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(IMAGE),
        transforms.ToTensor(),
        transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ])  # fmt: skip
    rewards = []
    for image, prompt in zip(images, prompts, strict=True):
        seen = vision_states(state, preprocess(Image.fromarray(image))[None])[0]
        x = text_states(state, *tokens(prompt), seen)[0]
        for number in (0, 2, 4, 6, 7):
            x = state[f"mlp.layers.{number}.weight"] @ x + state[f"mlp.layers.{number}.bias"]
        rewards.append((x.item() - 0.16717362830052426) / 1.0333394966054072)
    return np.array(rewards)


def random_images(size: tuple[int, int], count: int = 4) -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), np.uint8)
    pictures = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in rough]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_reward_folder(tmp_path_factory.mktemp("models") / "image_reward")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ImageRewardScorer:
    return ImageRewardScorer(str(folder), batch_size=4)


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (64, 70), (83, 47)])
def test_image_reward_is_the_published_forward_pass(scorer: ImageRewardScorer, size: tuple[int, int]) -> None:
    images = random_images(size)
    expected = published(image_reward_state(), images, PROMPTS)
    scores = scorer.score(images, PROMPTS)
    assert scores.failures == {}
    # Where an image is resized, PIL and torch round some pixels in a thousand differently, by one level.
    np.testing.assert_allclose(scores.values, expected, atol=1e-4 if size == (IMAGE, IMAGE) else 5e-3)
    again = scorer.score(images[::-1].copy(), PROMPTS[::-1]).values
    np.testing.assert_array_equal(again[::-1], scores.values)
    swapped = scorer.score(images, [PROMPTS[1], PROMPTS[0], *PROMPTS[2:]]).values
    assert np.ptp(expected) > 0.05
    assert np.abs(swapped - scores.values)[:2].min() > 1e-3  # prompts count, and not only by their first token


def test_checkpoints_of_distributed_training_and_safetensors_score_alike(
    scorer: ImageRewardScorer, folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    images = random_images((32, 32))
    state = image_reward_state()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "best.pt")
    save_file({name: value for name, value in state.items() if "_proj" not in name}, tmp_path / "bare.safetensors")
    for name in ("best.pt", "bare.safetensors"):
        other = ImageRewardScorer(str(folder), str(tmp_path / name), batch_size=4)
        np.testing.assert_array_equal(other.score(images, PROMPTS).values, scorer.score(images, PROMPTS).values)


def test_another_layout_is_refused_with_the_tensors_name(folder: Path, tmp_path: Path) -> None:
    state = image_reward_state()

    def refusal(changed: dict[str, Tensor]) -> str:
        torch.save(changed, tmp_path / "other.pt")
        with pytest.raises(RewardModelError) as error:
            ImageRewardScorer(str(folder), str(tmp_path / "other.pt"))
        assert error.value.option == "reward_checkpoint"
        return str(error.value)

    for key in (
        "blip.visual_encoder.cls_token",
        "blip.visual_encoder.blocks.0.attn.qkv.bias",
        "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight",
        "mlp.layers.7.bias",
    ):
        missing = {name: value for name, value in state.items() if name != key}
        remedy = "pass a checkpoint of ImageReward's layout as --reward_checkpoint"
        assert refusal(missing) == f"{tmp_path / 'other.pt'} lacks {key}; {remedy}"
        wrong = torch.zeros(*state[key].shape[:-1], state[key].shape[-1] + 1)
        assert key in refusal(state | {key: wrong}) or "cls_token" in key
    key = "blip.text_encoder.encoder.layer.0.crossattention.self.value.weight"
    assert f"{key} of shape [{TEXT_WIDTH}, {TEXT_WIDTH}] where [{TEXT_WIDTH}, {VISION_WIDTH}] is expected" in refusal(
        state | {key: torch.zeros(TEXT_WIDTH, TEXT_WIDTH)}
    )
    assert "holds mlp.layers.9.weight, which no such model has" in refusal(
        state | {"mlp.layers.9.weight": torch.ones(1)}
    )
    assert "holds no tensors by name" in refusal({})


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    (write_vocabulary(tmp_path) / "vocab.txt").write_text("\n".join([*WORDS, "blue"]))
    with pytest.raises(RewardModelError, match=r"knows 17 words, but the checkpoint 16; put the vocab\.txt"):
        ImageRewardScorer(str(folder), tokenizer=str(tmp_path))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(RewardModelError, match=r"knows \d words, but the checkpoint 16; put the vocab\.txt"):
        ImageRewardScorer(str(folder), tokenizer=str(tmp_path))


@pytest.fixture(scope="module")
def iteration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_compositional_folder(tmp_path_factory.mktemp("models") / "itercomp")


def test_compositional_is_the_weighted_sum_of_three_image_rewards(iteration: Path) -> None:
    images = random_images((32, 32))
    each = np.stack([published(image_reward_state(seed), images, PROMPTS) for seed in range(3)])
    scorer = CompositionalScorer(str(iteration), batch_size=4)
    assert scorer.names == ("attribute", "spatial", "non_spatial")
    np.testing.assert_allclose(scorer.score(images, PROMPTS).values, each.mean(0), atol=1e-4)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_allclose(scorer.each(pixels, PROMPTS).numpy(), each, atol=1e-4)
    files = [iteration / "reward_models" / f"{name}.pt" for name in ("non_spatial_relationship", "attribute_binding")]
    listed = ",".join(map(str, (files[0], files[1], files[1])))  # in the order of `names`, whatever they are called
    weighted = CompositionalScorer(str(iteration), listed, batch_size=4, weights=(0.5, 0.0, 2.0))
    np.testing.assert_allclose(weighted.score(images, PROMPTS).values, 0.5 * each[2] + 2 * each[0], atol=2e-4)


def test_compositional_names_the_checkpoint_that_is_missing(iteration: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(ValueError, match="pass one for each of attribute, spatial, non_spatial"):
        CompositionalScorer(str(iteration), weights=(1.0,))
    with pytest.raises(RewardModelError, match="names 2 checkpoints; pass three as --reward_checkpoint, with commas"):
        CompositionalScorer(str(iteration), "a.pt,b.pt")
    part = Path(shutil.copytree(iteration, tmp_path / "part"))
    (part / "reward_models" / "spatial_relationship.pt").unlink()
    with pytest.raises(RewardModelError, match=r"part holds no weights file for 'spatial' \(.safetensors"):
        CompositionalScorer(str(part))
