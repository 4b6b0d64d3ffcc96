"""The learning rate as a function of the update's number alone: no checkpoint needs a scheduler's state."""

from __future__ import annotations

import math

from sharpening.options import TrainingOptions


def learning_rate_at(update: int, options: TrainingOptions) -> float:
    """An update's learning rate: a linear warm-up, then constant, or down to zero by a line or half a cosine.

    Args:
        update: 0-based update.
        options: `learning_rate`, `lr_scheduler`, `lr_warmup_steps` and `updates` are read. The last update of the
            warm-up runs at the full rate.

    Returns:
        The learning rate.
    """
    warmup = options.lr_warmup_steps
    rate = options.learning_rate * min(1.0, (update + 1) / warmup) if warmup else options.learning_rate
    done = max(0, update - warmup) / max(1, options.updates - warmup)
    if options.lr_scheduler == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    return rate * (1 - done) if options.lr_scheduler == "linear" else rate
