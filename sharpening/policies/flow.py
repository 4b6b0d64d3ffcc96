"""What the adapters of flow-matching pipelines share (docs/flow-matching.md)."""

from __future__ import annotations

from typing import Any, ClassVar

from sharpening.flow_schedule import FlowSchedule
from sharpening.policies.latent import LatentPolicy
from sharpening.schedule import NoiseSchedule


class FlowPolicy(LatentPolicy):
    """Adapter of a transformer that predicts a flow's velocity; it answers in noise and clean latent all the same.

    Attributes:
        even_grid: whether the pipeline asks its scheduler for evenly spaced times.
    """

    part = "transformer"
    patch = 2
    even_grid: ClassVar[bool] = False

    def make_schedule(self) -> NoiseSchedule:
        """The flow of the pipeline's scheduler; its shift may grow with the number of tokens.

        Returns:
            The schedule.
        """
        tokens = (self.latent_shape[1] // self.patch) * (self.latent_shape[2] // self.patch)
        return FlowSchedule(self._pipeline.scheduler.config, tokens, self.even_grid)

    def make_scheduler(self) -> Any:
        """The diffusers scheduler that samples as this policy does.

        Returns:
            A FlowMatchEulerDiscreteScheduler.
        """
        scheduler = self._pipeline.scheduler
        return type(scheduler).from_config(scheduler.config)
