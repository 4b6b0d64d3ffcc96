"""Options that the methods which learn from the sampler's own random steps share."""

from __future__ import annotations

from dataclasses import dataclass

from sharpening.options.base import MethodOptions, described, require


@dataclass(frozen=True)
class StochasticOptions(MethodOptions):
    """Options of methods whose actions are the steps of a stochastic sampler.

    Attributes:
        timesteps_per_rollout: K, steps of each sample that are learnt, stratified over the grid without its last step.
        eta: η of DDIM, share of DDPM's noise that a step adds.
    """

    timesteps_per_rollout: int = described(
        4, "sampler steps of each sample that are learnt, stratified over all but the last", "timesteps a prompt", "K",
        ge=1,
    )  # fmt: skip
    eta: float = described(
        1.0, "share of DDPM's noise that a sampler step adds", symbol="η", gt=0, le=1,
        fix="a step without noise has no probability, so pass --eta above 0 and at most 1",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check each option alone and the combinations that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(self.rollout_steps >= 2, "rollout_steps", "leaves no step to learn beside the last; pass 2 or more")
        require(
            self.timesteps_per_rollout < self.rollout_steps,
            "timesteps_per_rollout",
            f"must be below rollout_steps ({self.rollout_steps}), whose last step is not learnt; pass fewer",
        )
