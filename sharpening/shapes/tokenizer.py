"""The world's own CLIP tokenizer: byte-level BPE with a vocabulary of a few hundred entries.

Every word of the caption grammar becomes one token; any other text falls back to bytes, as with CLIP's
own vocabulary. `<|endoftext|>` has the highest id, because CLIP text towers pool at the largest id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

CONTEXT_LENGTH = 32


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Learn the merges that make every word of the captions one token.

    Args:
        captions: enough captions to contain every word of the grammar.

    Returns:
        A tokenizer of 32 positions, in transformers' own class.
    """
    words = sorted({word for caption in captions for word in caption.split()})
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False, special_tokens=[]
    )
    learner.train_from_iterator(words, trainer)
    merges = _merges(learner)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = alphabet + [f"{char}</w>" for char in alphabet]
    entries += [entry for entry in dict.fromkeys(a + b for a, b in merges) if entry not in set(entries)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={entry: i for i, entry in enumerate(entries)}, merges=merges, model_max_length=CONTEXT_LENGTH
    )


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
