"""Prompts that are longer than a model's text encoders read: counted here, because the pipelines cut them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

TRUNCATED = "The following part of your input was truncated"
"""How the warning of diffusers' pipelines begins, which they give for every such prompt anew."""


class _NoTruncationWarnings(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(TRUNCATED)


def silence_pipelines() -> None:
    """Keep diffusers' warnings about long prompts out of the log: whoever counts them says so once."""
    for handler in logging.getLogger("diffusers").handlers:
        if not any(isinstance(known, _NoTruncationWarnings) for known in handler.filters):
            handler.addFilter(_NoTruncationWarnings())


def readers(pipeline: Any) -> list[tuple[Any, int]]:
    """Tokenizers of a pipeline, each with the most tokens that it hands to its text encoder.

    Args:
        pipeline: a diffusers pipeline.

    Returns:
        CLIP's limit is the tokenizer's own (77); T5's is the pipeline's default of `max_sequence_length`.
    """
    length = inspect.signature(pipeline.encode_prompt).parameters.get("max_sequence_length")
    found = []
    for number in ("", "_2", "_3"):
        tokenizer = getattr(pipeline, f"tokenizer{number}", None)
        if tokenizer is None or getattr(pipeline, f"text_encoder{number}", None) is None:
            continue
        t5 = "T5" in type(tokenizer).__name__ and length is not None
        found.append((tokenizer, int(length.default) if t5 and length else int(tokenizer.model_max_length)))
    return found


def count_overlong(pipeline: Any, prompts: Sequence[str]) -> int:
    """How many prompts no text encoder of a pipeline reads to their end.

    Args:
        pipeline: a diffusers pipeline.
        prompts: the prompts.

    Returns:
        Their number. With several encoders (SD3's CLIP and T5) the one that reads most decides.
    """
    limits = readers(pipeline)
    return sum(
        bool(limits) and all(len(tokenizer(prompt, verbose=False).input_ids) > limit for tokenizer, limit in limits)
        for prompt in prompts
    )


def overlong(policy: Any, prompts: Sequence[str]) -> int:
    """How many prompts a policy cuts.

    Args:
        policy: any policy; one that says nothing about it cuts none.
        prompts: the prompts.

    Returns:
        Their number.
    """
    count = getattr(policy, "overlong", None)
    return int(count(prompts)) if count is not None else 0
