"""A small open_clip model with random weights, for tests that need a CLIP folder and no meaning in it."""

from pathlib import Path

import numpy as np
import open_clip
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sharpening.rewards.clip import ClipScorer
from sharpening.shapes.clip_folder import save_clip_folder

WORDS = ("a", "red", "green", "blue", "circle", "square", "triangle", "cross", "left", "of", "above", "small", "dotted")
CONTEXT = 16


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocab[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=CONTEXT,
    )  # fmt: skip


def make_clip_folder(folder: Path, seed: int = 0, image_size: int = 64, layers: int = 1, width: int = 128) -> Path:
    tokenizer = make_tokenizer()
    vision = {"image_size": image_size, "layers": layers, "width": width, "head_width": 32, "patch_size": 8}
    text = {"context_length": CONTEXT, "vocab_size": len(tokenizer), "width": width, "heads": 4, "layers": 2}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    return save_clip_folder(model, config, {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.3]}, tokenizer, folder)


class BlackIsNotFinite(ClipScorer):
    """CLIP, but the embedding of an all-black image is NaN; a scorer of one's own, served by its import path."""

    def _encode_batch(self, batch: np.ndarray) -> np.ndarray:
        embeddings = super()._encode_batch(batch)
        embeddings[~batch.any(axis=(1, 2, 3))] = np.nan
        return embeddings
