"""Options of the method and of training, checked where they are made. Imports no torch: command lines read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


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


def _require(holds: bool, option: str, reason: str) -> None:
    if not holds:
        raise OptionError(option, reason)


@dataclass(frozen=True)
class SharpeningOptions:
    """Options of RLHF sharpening (Algorithm 2). The defaults are the setting that worked on the embedded world.

    Attributes:
        branches: n, branches of one prompt and timestep.
        branch_steps: m, denoising steps (states) of a branch.
        temperature: λ of the path integral; 0 is the paper's argmax and argmin.
        loss: "dpo_margin" (Eq. 11), "dpo" (no margin) or "rebel" (regression on the reward gap).
        beta: β, strength of the log ratio; errors are per-element means.
        reward_scale: η, what one unit of reward gap adds to the margin (0: plain DPO).
        winner_weight: μ, weight of Eq. 9's supervised error on the winner beside the preference loss (0: none).
        snr_gamma: γ of the states' weights ω_T = min(SNR, γ) / SNR inside the loss (0: all weigh the same).
        rollout_steps: sampler steps of a generated image; also the grid branches walk on.
        guidance_scale: classifier-free guidance of rollouts and branches (1: none).
        loss_guidance_scale: guidance of the prediction inside the loss (1: the conditional prediction alone).
        timesteps_per_rollout: K, timesteps at which one generated image is branched, stratified over the grid.
        selection: "prompt": one winner and one loser a prompt, by the path reward over all its K timesteps; "timestep":
            each timestep picks its own (at high noise the branches' predictions hardly differ, so it picks by chance).
        latents_per_prompt: generated x_0 per prompt: 0 = one a branch, 1 = one shared by all (the paper's text).
        branch_noise: "shared" by the branches of a (prompt, timestep), "fresh" for each, or the branch's "own"
            sampling noise.
        target: "initial": regress every state to the branch's ε; "state": to the noise implied by x_T and x_0.
        rollout_precision: arithmetic of rollouts; "bf16" autocasts sampling and branching. The errors of policy and
            reference are always compared in the weights' own precision.
    """

    branches: int = 4
    branch_steps: int = 1
    temperature: float = 0.0
    loss: Literal["dpo_margin", "dpo", "rebel"] = "dpo_margin"
    beta: float = 200.0
    reward_scale: float = 0.0
    winner_weight: float = 0.0
    snr_gamma: float = 1.0
    rollout_steps: int = 12
    guidance_scale: float = 1.0
    loss_guidance_scale: float = 1.0
    timesteps_per_rollout: int = 4
    selection: Literal["prompt", "timestep"] = "prompt"
    latents_per_prompt: int = 0
    branch_noise: Literal["shared", "own", "fresh"] = "shared"
    target: Literal["initial", "state"] = "initial"
    rollout_precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        """Check each option alone and the combinations that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """
        _require(self.branches >= 2, "branches", "is below 2; a preference needs a winner and a loser, pass 2 or more")
        _require(self.branch_steps >= 1, "branch_steps", "is below 1; pass 1 or more")
        _require(_nonnegative(self.temperature), "temperature", "must be a finite number; pass 0 or more")
        _require(_nonnegative(self.beta) and self.beta > 0, "beta", "must be a finite number; pass one above 0")
        _require(_nonnegative(self.reward_scale), "reward_scale", "must be a finite number; pass 0 or more")
        _require(_nonnegative(self.winner_weight), "winner_weight", "must be a finite number; pass 0 or more")
        _require(_nonnegative(self.snr_gamma), "snr_gamma", "must be a finite number; pass 0 for no weighting")
        _require(_nonnegative(self.guidance_scale), "guidance_scale", "must be a finite number; pass 1 for no guidance")
        _require(_nonnegative(self.loss_guidance_scale), "loss_guidance_scale", "must be a finite number of 0 or more")
        _require(self.rollout_steps >= 1, "rollout_steps", "is below 1; pass 1 or more")
        _require(
            1 <= self.timesteps_per_rollout <= self.rollout_steps,
            "timesteps_per_rollout",
            f"must lie between 1 and rollout_steps ({self.rollout_steps})",
        )
        for option, allowed in _CHOICES.items():
            _require(getattr(self, option) in allowed, option, f"must be one of {', '.join(allowed)}")
        _require(
            self.latents_per_prompt in (0, 1, self.branches),
            "latents_per_prompt",
            f"must be 0 (one a branch), 1 or the number of branches ({self.branches})",
        )
        _require(
            self.latents_per_prompt != 1 or self.branch_noise == "fresh",
            "branch_noise",
            f"{self.branch_noise} with latents_per_prompt 1 makes all branches of a prompt the same; pass fresh",
        )
        _require(
            self.loss != "rebel" or self.reward_scale > 0,
            "reward_scale",
            "is 0, so rebel would regress every log ratio to 0; pass a reward_scale above 0",
        )

    @property
    def latents(self) -> int:
        """How many x_0 are generated for a prompt."""
        return self.latents_per_prompt or self.branches


_CHOICES: dict[str, tuple[str, ...]] = {
    "loss": ("dpo_margin", "dpo", "rebel"),
    "selection": ("prompt", "timestep"),
    "branch_noise": ("shared", "own", "fresh"),
    "target": ("initial", "state"),
    "rollout_precision": ("fp32", "bf16"),
}
_SCHEDULERS = ("constant", "constant_with_warmup", "cosine", "linear")


def _nonnegative(value: float) -> bool:
    return math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training loop, named as in diffusers' training scripts where those have them.

    Attributes:
        updates: optimiser steps.
        prompts_per_update: prompts whose rollouts make one update.
        rollout_batch_size: prompts of one rollout task, the fixed unit of work.
        train_batch_size: groups (prompt, timestep) of one forward and backward pass; gradients accumulate over an
            update's passes.
        learning_rate: AdamW's learning rate.
        lr_scheduler: "constant", "constant_with_warmup", "linear" or "cosine" (both down to zero at the last update).
        lr_warmup_steps: updates over which the learning rate rises to that value.
        adam_beta1: decay of AdamW's first moment.
        adam_beta2: decay of AdamW's second moment.
        adam_weight_decay: AdamW's weight decay.
        adam_epsilon: AdamW's ε.
        max_grad_norm: gradients are clipped to this norm.
        max_failed_share: the run stops when a larger share of an update's prompts failed to score.
        seed: the run's seed.
    """

    updates: int = 36
    prompts_per_update: int = 24
    rollout_batch_size: int = 6
    train_batch_size: int = 32
    learning_rate: float = 6e-5
    lr_scheduler: Literal["constant", "constant_with_warmup", "cosine", "linear"] = "cosine"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    max_failed_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """
        for option in ("updates", "prompts_per_update", "rollout_batch_size", "train_batch_size"):
            _require(getattr(self, option) >= 1, option, "is below 1; pass 1 or more")
        for option in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            value = getattr(self, option)
            _require(_nonnegative(value) and value > 0, option, "must be a finite number; pass one above 0")
        for option in ("lr_warmup_steps", "adam_weight_decay"):
            _require(_nonnegative(getattr(self, option)), option, "must be a finite number; pass 0 or more")
        _require(self.lr_scheduler in _SCHEDULERS, "lr_scheduler", f"must be one of {', '.join(_SCHEDULERS)}")
        for option in ("adam_beta1", "adam_beta2", "max_failed_share"):
            value = getattr(self, option)
            _require(_nonnegative(value) and value < 1, option, "must lie in [0, 1)")
