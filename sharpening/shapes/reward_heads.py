"""Small reward heads on the frozen embedded CLIP: what they read, what they are, and their files.

The 64-d embedding of an image tells every attribute, place and size; that of a caption hardly tells in which order its
things come, so heads read captions from the text tower's tokens. Badly drawn images show in the statistics of the
image tower's early layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sharpening.checks import ModelFolderError, check_safetensors, read_json

HEADS = ("aesthetic", "preference", "attribute", "spatial", "non_spatial")
IMAGE_ONLY = ("aesthetic",)
CONFIG_NAME = "config.json"
CLIP_NAME = "open_clip_model.safetensors"


def image_features(clip: Any, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch feature"]:
    """What heads read of an image: its embedding, and mean and deviation of each channel of the early layers.

    Args:
        clip: the embedded CLIP, an `open_clip.CLIP` with a ResNet tower.
        pixels: preprocessed images.

    Returns:
        Embedding of length 8, then the statistics of stem, first and second stage.
    """
    visual, statistics = clip.visual, []
    x = visual.stem(pixels)
    for stage in (visual.layer1, visual.layer2, visual.layer3):
        statistics += [x.mean(dim=(2, 3)), (x.var(dim=(2, 3)) + 1e-4).sqrt()]  # a root's slope at 0 is infinite
        x = stage(x)
    embedding = 8 * F.normalize(visual.attnpool(visual.layer4(x)), dim=1)
    return torch.cat([embedding, *statistics], dim=1)


def text_tokens(clip: Any, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
    """What heads read of captions: the text tower's last hidden states.

    Args:
        clip: the embedded CLIP.
        tokens: token ids.

    Returns:
        One row a token; the tower is causal, so each knows those before it.
    """
    hidden = clip.token_embedding(tokens) + clip.positional_embedding
    return clip.ln_final(clip.transformer(hidden, attn_mask=clip.attn_mask))


class RewardHead(nn.Module):
    """A Bradley-Terry reward of an image, under a caption or by itself.

    A caption's tokens are read by a GRU into one vector (`read`); image and caption meet in an MLP (`forward`). Rewards
    are the MLP's logits on a scale on which the mean over clean, true pictures is 1 and that over their rivals is 0.

    Attributes:
        width: of the caption's and of the image's vector.
        with_text: whether captions are read.
        scale: the mean logits that become 0 and 1.
    """

    scale: Tensor

    def __init__(self, image_width: int, text_width: int, width: int = 96, with_text: bool = True) -> None:
        """Make an untrained head.

        Args:
            image_width: of `image_features`.
            text_width: of a row of `text_tokens`.
            width: of the head.
            with_text: whether captions are read.
        """
        super().__init__()
        self.width, self.with_text = width, with_text
        self.image = nn.Linear(image_width, width)
        if with_text:
            self.reader = nn.GRU(text_width, width, batch_first=True)
            self.text = nn.Linear(width, width)
        self.judge = nn.Sequential(nn.Linear(width * (3 if with_text else 1), 128), nn.GELU(), nn.Linear(128, 1))
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))

    def read(self, tokens: Float[Tensor, "batch token text_width"]) -> Float[Tensor, "batch width"]:
        """A caption as one vector.

        Args:
            tokens: what `text_tokens` gives.

        Returns:
            The vector; zeros for a head that reads no captions.
        """
        if not self.with_text:
            return tokens.new_zeros(len(tokens), self.width)
        return self.text(self.reader(tokens)[1][0])

    def logits(
        self, image: Float[Tensor, "batch feature"], text: Float[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """The MLP's answers, whose differences are log odds of being preferred.

        Args:
            image: what `image_features` gives.
            text: what `read` gives.

        Returns:
            One logit a row.
        """
        seen = self.image(image)
        joint = torch.cat([seen, text, seen * text], dim=1) if self.with_text else F.gelu(seen)
        return self.judge(joint)[:, 0]

    def forward(
        self, image: Float[Tensor, "batch feature"], text: Float[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """Rewards: logits on the head's scale.

        Args:
            image: what `image_features` gives.
            text: what `read` gives.

        Returns:
            One reward a row.
        """
        return (self.logits(image, text) - self.scale[0]) / (self.scale[1] - self.scale[0])


def clip_digest(folder: Path) -> str:
    """SHA-256 of a CLIP folder's weights, by which heads know the model they were trained on."""
    return hashlib.sha256((folder / CLIP_NAME).read_bytes()).hexdigest()


def save_heads(heads: Mapping[str, RewardHead], folder: Path, config: Mapping[str, Any]) -> None:
    """Write heads, each as a safetensors file in half precision, and what is worth knowing about them.

    Args:
        heads: by name.
        folder: created where it does not exist.
        config: `clip` (`clip_digest`) and whatever tells how they were trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, head in heads.items():
        halves = {key: value.half().contiguous() for key, value in head.state_dict().items() if key != "scale"}
        save_file(halves | {"scale": head.scale.contiguous()}, folder / f"{name}.safetensors")
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_heads(folder: Path, names: Sequence[str], clip_folder: Path) -> dict[str, RewardHead]:
    """Load heads, frozen.

    Args:
        folder: what `save_heads` wrote.
        names: which of them.
        clip_folder: the CLIP they will read from.

    Returns:
        The heads by name, on the CPU, in float32.

    Raises:
        ModelFolderError: naming the file that is missing, damaged or made for another CLIP, and what to do.
    """
    remedy = f"run `python -m sharpening.shapes.train heads --output_dir {folder}`"
    if read_json(folder / CONFIG_NAME).get("clip") != clip_digest(clip_folder):
        raise ModelFolderError(f"the heads of {folder} read another CLIP than {clip_folder / CLIP_NAME}; {remedy}")
    heads = {}
    for name in names:
        file = folder / f"{name}.safetensors"
        check_safetensors(file)
        weights = load_file(file)
        try:
            image, reader = weights["image.weight"], weights.get("reader.weight_ih_l0")
            head = RewardHead(image.shape[1], 0 if reader is None else reader.shape[1], len(image), reader is not None)
            head.load_state_dict(weights)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelFolderError(f"{file} holds no reward head; {remedy}") from error
        heads[name] = head.eval().requires_grad_(False)
    return heads
