"""Options of REBEL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpening.options.base import MethodOptions, described, require
from sharpening.options.training import TrainingOptions


@dataclass(frozen=True)
class RebelOptions(MethodOptions):
    """Options of REBEL. The defaults are the setting that worked best on the embedded world.

    Attributes:
        beta: β, what one unit of error difference is worth as a log ratio; errors are per-element means.
        reward_scale: η, the log ratio that one unit of reward gap is regressed to (published: 1, for rewards of
            deviation 1).
        snr_gamma: γ of the states' weights ω_T = min(SNR, γ) / SNR inside the loss (0: all weigh the same).
        timesteps_per_rollout: K, timesteps at which each pair of samples is compared, stratified over the grid.
    """

    beta: float = described(200.0, "worth of an error difference as a log ratio", "1 / mean squared error", "β", gt=0)
    reward_scale: float = described(
        0.1, "log ratio that one unit of reward gap is regressed to (published: 1)", "1 / reward unit", "η", gt=0,
        fix="with 0 every log ratio would be regressed to 0, so pass a value greater than 0",
    )  # fmt: skip
    snr_gamma: float = described(
        1.0,
        "weighs states by min(SNR, γ) / SNR in the loss, so that nearly clean ones do not drown the others; 0: equally",
        "signal-to-noise ratio", "ω_T", ge=0,
    )  # fmt: skip
    timesteps_per_rollout: int = described(
        4, "timesteps at which every pair of samples is compared", "timesteps a prompt", "K", ge=1
    )

    about: ClassVar[str] = "REBEL, regression of log-ratio differences to reward differences (arXiv 2404.16767)"
    training: ClassVar[TrainingOptions] = TrainingOptions(updates=24, learning_rate=6e-5)

    def __post_init__(self) -> None:
        """Check each option alone and the combination that cannot work.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(
            self.timesteps_per_rollout <= self.rollout_steps,
            "timesteps_per_rollout",
            f"must be at most rollout_steps ({self.rollout_steps}); pass fewer",
        )

    @property
    def groups_per_prompt(self) -> int:
        """One group a timestep."""
        return self.timesteps_per_rollout
