"""Options that the methods which learn from the sampler's own random steps share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import MethodOptions, described, require


@dataclass(frozen=True)
class StochasticOptions(MethodOptions):
    """Options of methods whose actions are the steps of a stochastic sampler.

    Attributes:
        timesteps_per_rollout: K, steps of each sample that are learnt, stratified over the learnable ones.
        noisy_share: share of the sampler's steps, from its noisy end, that are learnable (public code: 1). A step with
            little noise has the largest gradient, as σ divides it, and the reward hardly depends on it: on the embedded
            world the gradients of two independent halves of an update agree (cosine) by 0.04 over all steps, by 0.2
            over the noisier half.
        eta: η of DDIM, share of DDPM's noise that a step adds.
    """

    timesteps_per_rollout: int = described(
        4,
        "sampler steps of each sample that are learnt, stratified over the learnable",
        "timesteps a prompt",
        "K",
        ge=1,
    )
    noisy_share: float = described(
        0.5, "share of the sampler's steps, from the noisy end, that can be learnt; the last one never is",
        "sampler steps", gt=0, le=1,
    )  # fmt: skip
    eta: float = described(
        1.0, "share of DDPM's noise that a sampler step adds", symbol="η", gt=0, le=1,
        fix="a step without noise has no probability, so pass --eta above 0 and at most 1",
    )  # fmt: skip

    bf16: ClassVar[bool] = False  # a step's log-probability divides by a small σ², and rounding with it

    def __post_init__(self) -> None:
        """Check each option alone and the combinations that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(self.rollout_steps >= 2, "rollout_steps", "leaves no step to learn beside the last; pass 2 or more")
        require(
            self.timesteps_per_rollout <= self.learnable_steps,
            "timesteps_per_rollout",
            f"is above the {self.learnable_steps} learnable steps; pass fewer, or a greater --noisy_share",
        )

    @property
    def learnable_steps(self) -> int:
        """How many steps, from the noisy end, may be learnt: the share asked for, without the last, at least one."""
        asked = math.floor(self.noisy_share * self.rollout_steps + 1e-9)  # 0.7 · 10 is not quite 7
        return max(1, min(asked, self.rollout_steps - 1))
