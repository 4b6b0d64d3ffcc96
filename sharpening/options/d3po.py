"""Options of D3PO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import described
from sharpening.options.stochastic import StochasticOptions
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class D3POOptions(StochasticOptions):
    """Options of D3PO. β and ε are the public code's, the other defaults those that did best on the embedded world.

    Attributes:
        timesteps_per_rollout: K, steps of each pair that are learnt, stratified over the learnable ones.
        beta: β, strength of the log ratio; log-probabilities are per-element means.
        clip_range: ε, the ratio to the reference is clipped to 1 ± this.
    """

    timesteps_per_rollout: int = described(
        6, "sampler steps of each pair that are learnt, stratified over the learnable", "timesteps a prompt", "K", ge=1
    )
    beta: float = described(0.1, "strength of the pull to the reference", symbol="β", gt=0)
    clip_range: float = described(
        0.1, "the ratio of a step's probabilities is clipped to 1 ± this", "ratio", "ε", gt=0, lt=1
    )

    about: ClassVar[str] = "D3PO: preferences over the sampler's steps (arXiv 2311.13231)"
    training: ClassVar[TrainingOptions] = TrainingOptions(
        updates=14, train_batch_size=24, learning_rate=6e-5, lr_warmup_steps=2
    )

    @property
    def groups_per_prompt(self) -> int:
        """One group a learnt step of the pair."""
        return self.timesteps_per_rollout
