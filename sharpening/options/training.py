"""Options of training, which all methods share, and the error that refuses one. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args


class OptionError(ValueError):
    """An option has a value that cannot work.

    Attributes:
        option: name of the option.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, option: str, reason: str) -> None:
        """Name the option and the reason.

        Args:
            option: name of the option.
            reason: what is wrong with it and what to do.
        """
        super().__init__(f"{option}: {reason}")
        self.option = option
        self.reason = reason


def require(holds: bool, option: str, reason: str) -> None:
    """Refuse an option.

    Args:
        holds: whether it can work.
        option: its name.
        reason: what is wrong otherwise and what to do.

    Raises:
        OptionError: if it cannot.
    """
    if not holds:
        raise OptionError(option, reason)


def nonnegative(value: float) -> bool:
    """Whether a number is finite and at least 0."""
    return math.isfinite(value) and value >= 0


Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
CONSTANT = ("constant", "constant_with_warmup")
"""Schedules that do not depend on where the run ends."""
LAST_RATE = 1e-7
"""Where "polynomial" ends, as in diffusers."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training loop, named as in diffusers' training scripts where those have them.

    Attributes:
        updates: updates; a rollout of fresh experience and `inner_steps` optimiser steps each.
        prompts_per_update: prompts whose rollouts make one update.
        rollout_batch_size: prompts of one rollout task, the fixed unit of work.
        inner_steps: optimiser steps made from one update's experience, each on an equal share of its groups.
        train_batch_size: groups (prompt, timestep) of one forward and backward pass; gradients accumulate over an
            update's passes.
        learning_rate: AdamW's learning rate.
        lr_scheduler: "constant", "constant_with_warmup", or down to zero after the last update: "linear", "cosine",
            "cosine_with_restarts" and, to 1e-7, "polynomial".
        lr_warmup_steps: updates over which the learning rate rises to that value.
        lr_num_cycles: half cosines of "cosine_with_restarts", each of which begins at the full rate.
        lr_power: exponent of "polynomial".
        adam_beta1: decay of AdamW's first moment.
        adam_beta2: decay of AdamW's second moment.
        adam_weight_decay: AdamW's weight decay.
        adam_epsilon: AdamW's ε.
        max_grad_norm: gradients are clipped to this norm.
        max_failed_share: the run stops when a larger share of an update's prompts failed to score.
        seed: the run's seed.
        rank: rank of LoRA's adapters; 0 trains all of the denoiser's weights.
        lora_alpha: LoRA's α, adapters are scaled by α / rank; None means the rank itself.
        lora_target_modules: ends of the names of the layers that get an adapter; none means the family's own.
        use_ema: whether the weights are averaged over the updates; the model ends with the average.
        ema_decay: the average's largest decay.
        gradient_checkpointing: whether the backward pass computes activations again instead of keeping them.
        torch_compile: whether the denoiser is compiled.
    """

    updates: int = 36
    prompts_per_update: int = 24
    rollout_batch_size: int = 12
    inner_steps: int = 1
    train_batch_size: int = 32
    learning_rate: float = 6e-5
    lr_scheduler: Scheduler = "cosine"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    max_failed_share: float = 0.5
    seed: int = 0
    rank: int = 0
    lora_alpha: float | None = None
    lora_target_modules: tuple[str, ...] = ()
    use_ema: bool = False
    ema_decay: float = 0.9999
    gradient_checkpointing: bool = False
    torch_compile: bool = False

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """
        for option in ("updates", "prompts_per_update", "rollout_batch_size", "train_batch_size", "inner_steps"):
            require(getattr(self, option) >= 1, option, "is below 1; pass 1 or more")
        for option in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            value = getattr(self, option)
            require(nonnegative(value) and value > 0, option, "must be a finite number; pass one above 0")
        for option in ("lr_warmup_steps", "adam_weight_decay"):
            require(nonnegative(getattr(self, option)), option, "must be a finite number; pass 0 or more")
        self._check_schedule()
        for option in ("adam_beta1", "adam_beta2", "max_failed_share", "ema_decay"):
            value = getattr(self, option)
            require(nonnegative(value) and value < 1, option, "must lie in [0, 1)")
        self._check_adapters()

    def _check_schedule(self) -> None:
        """Refuse options of the learning rate's schedule that cannot work, or that would change nothing."""
        known, chosen = get_args(Scheduler), self.lr_scheduler
        require(chosen in known, "lr_scheduler", f"must be one of {', '.join(known)}")
        require(self.lr_num_cycles >= 1, "lr_num_cycles", "is below 1; pass 1 or more")
        require(nonnegative(self.lr_power) and self.lr_power > 0, "lr_power", "must be finite; pass one above 0")
        for option, told, wanted in (
            ("lr_num_cycles", self.lr_num_cycles != 1, "cosine_with_restarts"),
            ("lr_power", self.lr_power != 1, "polynomial"),
        ):
            remedy = f"pass --lr_scheduler {wanted}, or leave it out"
            require(chosen == wanted or not told, option, f"says nothing to '{chosen}'; {remedy}")
        require(
            chosen != "polynomial" or self.learning_rate > LAST_RATE, "learning_rate",
            f"is {self.learning_rate:g}, and 'polynomial' ends at {LAST_RATE:g}; pass one above that",
        )  # fmt: skip

    def _check_adapters(self) -> None:
        """Refuse options of adapters that cannot work, or that would change nothing."""
        require(self.rank >= 0, "rank", "is below 0; pass 0 for full fine-tuning, or LoRA's rank")
        alpha = self.lora_alpha
        require(alpha is None or (nonnegative(alpha) and alpha > 0), "lora_alpha", "must be finite; pass one above 0")
        for option, told in (
            ("lora_alpha", alpha is not None),
            ("lora_target_modules", bool(self.lora_target_modules)),
        ):
            require(
                self.rank > 0 or not told, option, "says how to adapt, but nothing is; pass --rank 16, or leave it out"
            )
