"""ImageReward's checkpoint: its tensors, and the sizes they tell; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from sharpening.rewards.aesthetic_files import MLP, NUMBERS, stack_shapes
from sharpening.rewards.base import RewardModelError
from sharpening.rewards.layouts import CHECKPOINT, MODEL, Shapes, check_layout, file_shapes, layers, local_weights

REPOSITORY, FILE = "THUDM/ImageReward", "ImageReward.pt"
BERT = "bert-base-uncased"
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json")
HEAD_WIDTH = 64
"""Width of an attention head in both of BLIP's vision towers and in BERT; the checkpoint does not tell it."""

VISION, TEXT, HEAD = "blip.visual_encoder", "blip.text_encoder", "mlp.layers"
UNUSED = r"blip\.(vision|text)_proj\.(weight|bias)|blip\.text_encoder\.embeddings\.position_ids"
"""Tensors of BLIP's pretraining that the reward does not read."""


@dataclass(frozen=True)
class BlipSizes:
    """Sizes of a BLIP with a vision tower and a text encoder that attends to it.

    Attributes:
        vision_width: of the vision tower's tokens.
        vision_hidden: of its MLPs.
        vision_layers: its blocks.
        patch: width and height of a patch, in pixels.
        image: width and height of an image, in pixels.
        text_width: of the text encoder's tokens.
        text_hidden: of its MLPs.
        text_layers: its layers.
        words: of its vocabulary.
        positions: tokens that it can read.
    """

    vision_width: int
    vision_hidden: int
    vision_layers: int
    patch: int
    image: int
    text_width: int
    text_hidden: int
    text_layers: int
    words: int
    positions: int


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse a checkpoint that is not there or another model's.

    Args:
        model: folder or hub id; None: the published one.
        checkpoint: weights in place of the model's own: a file, folder or hub id; None: the model's.

    Raises:
        RewardModelError: if a file is absent, truncated or another model's.
    """  # noqa: DOC502
    value, option = place_of(model or REPOSITORY, checkpoint)
    path = local_weights(value, option)
    found = file_shapes(path, option) if path is not None else None
    if path is not None and found is not None:
        blip_sizes(path, found, option)


def place_of(model: str, checkpoint: str | None) -> tuple[str, str]:
    """Where the weights are.

    Args:
        model: folder or hub id.
        checkpoint: file, folder or hub id; None: the model's own.

    Returns:
        A file, folder or hub id, and the option that says so.
    """
    if checkpoint is not None:
        return checkpoint, CHECKPOINT
    return f"{REPOSITORY}:{FILE}" if model == REPOSITORY else model, MODEL


def blip_sizes(path: Path, found: Shapes, option: str) -> BlipSizes:
    """Sizes of the model that a checkpoint holds.

    Args:
        path: the file, for the message.
        found: shapes of its tensors.
        option: the option that names it.

    Returns:
        The sizes.

    Raises:
        RewardModelError: naming the tensor that is missing, of another shape or unexpected.
    """
    remedy = f"pass a checkpoint of ImageReward's layout as --{option}"

    def size(name: str, dimension: int) -> int:
        if len(found.get(name, ())) <= dimension:
            raise RewardModelError(f"{path} lacks {name}; {remedy}", option)
        return found[name][dimension]

    patch = size(f"{VISION}.patch_embed.proj.weight", 3)
    sizes = BlipSizes(
        vision_width=size(f"{VISION}.cls_token", 2),
        vision_hidden=size(f"{VISION}.blocks.0.mlp.fc1.weight", 0),
        vision_layers=layers(found, rf"{VISION}\.blocks\.(\d+)\."),
        patch=patch,
        image=patch * isqrt(size(f"{VISION}.pos_embed", 1) - 1),
        text_width=size(f"{TEXT}.embeddings.word_embeddings.weight", 1),
        text_hidden=size(f"{TEXT}.encoder.layer.0.intermediate.dense.weight", 0),
        text_layers=layers(found, rf"{TEXT}\.encoder\.layer\.(\d+)\."),
        words=size(f"{TEXT}.embeddings.word_embeddings.weight", 0),
        positions=size(f"{TEXT}.embeddings.position_embeddings.weight", 0),
    )
    check_layout(path, found, expected_shapes(sizes), remedy, option, UNUSED)
    for width in (sizes.vision_width, sizes.text_width):
        if width % HEAD_WIDTH:
            raise RewardModelError(f"{path} is {width} wide, no multiple of {HEAD_WIDTH}; {remedy}", option)
    return sizes


def expected_shapes(sizes: BlipSizes) -> Shapes:
    """Shapes of every tensor that the reward reads, by its name in ImageReward's checkpoint.

    Args:
        sizes: of the model.

    Returns:
        Shapes by name.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    width, hidden, patches = sizes.vision_width, sizes.vision_hidden, (sizes.image // sizes.patch) ** 2
    shapes[f"{VISION}.cls_token"] = (1, 1, width)
    shapes[f"{VISION}.pos_embed"] = (1, patches + 1, width)
    shapes[f"{VISION}.patch_embed.proj.weight"] = (width, 3, sizes.patch, sizes.patch)
    shapes[f"{VISION}.patch_embed.proj.bias"] = (width,)
    for number in range(sizes.vision_layers):
        block = f"{VISION}.blocks.{number}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", hidden, width)
        linear(f"{block}.mlp.fc2", width, hidden)
    norm(f"{VISION}.norm", width)

    seen, width, hidden = width, sizes.text_width, sizes.text_hidden
    shapes[f"{TEXT}.embeddings.word_embeddings.weight"] = (sizes.words, width)
    shapes[f"{TEXT}.embeddings.position_embeddings.weight"] = (sizes.positions, width)
    norm(f"{TEXT}.embeddings.LayerNorm", width)
    for number in range(sizes.text_layers):
        layer = f"{TEXT}.encoder.layer.{number}"
        for part, read in (("attention", width), ("crossattention", seen)):
            linear(f"{layer}.{part}.self.query", width, width)
            linear(f"{layer}.{part}.self.key", width, read)
            linear(f"{layer}.{part}.self.value", width, read)
            linear(f"{layer}.{part}.output.dense", width, width)
            norm(f"{layer}.{part}.output.LayerNorm", width)
        linear(f"{layer}.intermediate.dense", hidden, width)
        linear(f"{layer}.output.dense", width, hidden)
        norm(f"{layer}.output.LayerNorm", width)
    return {**shapes, **stack_shapes(width, NUMBERS[MLP], HEAD)}


def tokenizer_place(model: str, tokenizer: str | None = None) -> str:
    """Where BERT's vocabulary is read from.

    Args:
        model: folder or hub id of the reward's model.
        tokenizer: folder or hub id; None: the model's folder if it holds one, else BERT's of the hub.

    Returns:
        Folder or hub id.
    """
    if tokenizer is not None:
        return tokenizer
    folder = Path(model).expanduser()
    return str(folder) if any((folder / name).is_file() for name in TOKENIZER_FILES) else BERT
