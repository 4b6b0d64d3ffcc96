"""ImageReward (Xu et al., arXiv 2304.05977): BLIP with cross-attention and an MLP, trained on people's rankings.

Its package imports from transformers what version 5 no longer has. Its checkpoint needs no code of its own, though:
transformers has BLIP's vision tower and text encoder, of which only the former's names differ (`vision_name`). What
is computed is `score` of `github.com/THUDM/ImageReward`: `ImageReward/ImageReward.py`, and `blip.py`, `vit.py` and
`med.py` of `ImageReward/models/BLIP`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.image_reward_files import (
    HEAD,
    HEAD_WIDTH,
    REPOSITORY,
    TEXT,
    VISION,
    BlipSizes,
    blip_sizes,
    place_of,
    tokenizer_place,
)
from sharpening.rewards.layouts import MODEL
from sharpening.rewards.preprocessing import Preprocessing
from sharpening.rewards.scorer import ImageScorer
from sharpening.rewards.weights import linear_stack, one_line, read_weights, shapes_of, weights_file

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the MLP's answers over the training set; rewards are standardised by them."""
MAX_LENGTH = 35

_RENAMED = (  # of the vision tower: ours in ImageReward's checkpoint → transformers'
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm", r"encoder.layers.\1.layer_norm"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


class ImageRewardScorer(ImageScorer):
    """ImageReward of images: standardised over its training set, so that 0 is average.

    The text encoder reads the prompt's first 35 tokens and attends to the image; its first token's state goes through
    the MLP.
    """

    def __init__(
        self,
        model: str = REPOSITORY,
        checkpoint: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        tokenizer: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: hub id, or a folder with the checkpoint and, to do without the hub, BERT's `vocab.txt`.
            checkpoint: weights in place of the model's own: a file, a folder, `owner/name` or `owner/name:file` of the
                hub.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.
            tokenizer: folder or hub id of a BERT tokenizer; None: the model's folder if it holds one, else
                `bert-base-uncased`.

        Raises:
            RewardModelError: if the model cannot be loaded.
            ValueError: if `batch_size` is below 1.
        """  # noqa: DOC502
        value, option = place_of(model, checkpoint)
        path = weights_file(value, option)
        tensors = read_weights(path, option)
        sizes = blip_sizes(path, shapes_of(tensors), option)
        place = torch.device(device)
        self._tokenizer = load_tokenizer(tokenizer_place(model, tokenizer), sizes.words)
        self._vision = load_vision(tensors, sizes).to(place)
        self._reader = load_text(tensors, sizes).to(place)
        self._mlp = linear_stack(tensors, HEAD).to(place)
        super().__init__(Preprocessing(sizes.image), place, batch_size)

    def _features(self, pixels: Tensor) -> Tensor:
        return self._vision(pixel_values=pixels).last_hidden_state

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        """Token ids and which of them are no padding, `[2 · MAX_LENGTH]`; float32 holds both."""
        tokens = self._tokenizer(prompt, padding="max_length", truncation=True, max_length=MAX_LENGTH)
        return np.array([*tokens["input_ids"], *tokens["attention_mask"]], np.float32)

    def _compare_tensors(self, image: Tensor, text: Tensor) -> Tensor:
        tokens, mask = text.long().split(MAX_LENGTH, dim=1)
        states = self._reader(input_ids=tokens, attention_mask=mask, encoder_hidden_states=image, is_decoder=False)
        return (self._mlp(states.last_hidden_state[:, 0])[:, 0] - MEAN) / STD


def load_tokenizer(where: str, words: int) -> Any:
    """BERT's tokenizer with BLIP's two special tokens, as `init_tokenizer` of BLIP makes it.

    Args:
        where: folder or hub id.
        words: of the checkpoint's vocabulary.

    Returns:
        The tokenizer.

    Raises:
        RewardModelError: if it does not load, or has not as many words as the checkpoint.
    """
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(where)
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    except Exception as error:  # transformers raises whatever it meets
        raise RewardModelError(
            f"BERT's tokenizer does not load from {where} ({one_line(error)}); put its vocab.txt beside the checkpoint "
            f"and pass that folder as --{MODEL}"
        ) from error
    if len(tokenizer) != words:  # transformers makes an empty tokenizer of a folder without a vocabulary
        raise RewardModelError(
            f"the tokenizer of {where} knows {len(tokenizer)} words, but the checkpoint {words}; put the vocab.txt "
            f"that it was trained with beside it and pass that folder as --{MODEL}"
        )
    return tokenizer


def load_vision(tensors: dict[str, Tensor], sizes: BlipSizes) -> Any:
    """BLIP's vision tower, frozen.

    Args:
        tensors: ImageReward's checkpoint, checked.
        sizes: of the model.

    Returns:
        A `BlipVisionModel`.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    config = BlipVisionConfig(
        hidden_size=sizes.vision_width, intermediate_size=sizes.vision_hidden, num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_width // HEAD_WIDTH, image_size=sizes.image, patch_size=sizes.patch,
        hidden_act="gelu", layer_norm_eps=1e-6,
    )  # fmt: skip
    return _filled(BlipVisionModel, config, {vision_name(n): t for n, t in _below(tensors, VISION).items()})


def load_text(tensors: dict[str, Tensor], sizes: BlipSizes) -> Any:
    """BLIP's text encoder, a BERT with cross-attention, frozen.

    Args:
        tensors: ImageReward's checkpoint, checked.
        sizes: of the model.

    Returns:
        A `BlipTextModel`.
    """
    from transformers import BlipTextConfig, BlipTextModel

    config = BlipTextConfig(
        vocab_size=sizes.words, hidden_size=sizes.text_width, encoder_hidden_size=sizes.vision_width,
        intermediate_size=sizes.text_hidden, num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_width // HEAD_WIDTH, max_position_embeddings=sizes.positions, hidden_act="gelu",
        layer_norm_eps=1e-12, is_decoder=True, bos_token_id=None, eos_token_id=None, sep_token_id=None,
    )  # fmt: skip
    named = {name: tensor for name, tensor in _below(tensors, TEXT).items() if not name.endswith("position_ids")}
    return _filled(BlipTextModel, config, named, add_pooling_layer=False)


def vision_name(name: str) -> str:
    """How transformers names a tensor of the vision tower.

    Args:
        name: ImageReward's, below `blip.visual_encoder`.

    Returns:
        Its name in `BlipVisionModel`.
    """
    for pattern, replacement in _RENAMED:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def _filled(kind: Any, config: Any, tensors: dict[str, Tensor], **options: Any) -> Any:
    model = kind(config, **options)
    model.load_state_dict(tensors)  # strict: the layout was checked, so a name that is left over is a fault of ours
    return model.eval().requires_grad_(False)
