"""The learning rate as a function of the update's number alone: no checkpoint needs a scheduler's state."""

from __future__ import annotations

import math

from sharpening.options import TrainingOptions
from sharpening.options.training import LAST_RATE


def learning_rate_at(update: int, options: TrainingOptions) -> float:
    """An update's learning rate: a linear warm-up, then one of diffusers' schedules (`diffusers.optimization`).

    Args:
        update: 0-based update.
        options: `learning_rate`, `updates` and what begins with `lr_` are read. The last update of the warm-up runs at
            the full rate.

    Returns:
        The learning rate.
    """
    warmup = options.lr_warmup_steps
    rate = options.learning_rate * min(1.0, (update + 1) / warmup) if warmup else options.learning_rate
    done = max(0, update - warmup) / max(1, options.updates - warmup)
    match options.lr_scheduler:
        case "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * done))
        case "cosine_with_restarts":
            return rate * 0.5 * (1 + math.cos(math.pi * (options.lr_num_cycles * done % 1.0)))
        case "polynomial" if update >= warmup:
            return (rate - LAST_RATE) * (1 - done) ** options.lr_power + LAST_RATE
        case "linear":
            return rate * (1 - done)
    return rate
