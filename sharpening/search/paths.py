"""Search over paths: widen a few trajectories by noising and denoising again (Ma et al. 2025, arXiv 2501.09732)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.options.base import require
from sharpening.search.base import SearchOptions
from sharpening.search.runs import SessionSearch
from sharpening.search.session import Session


@dataclass(frozen=True)
class PathOptions(SearchOptions):
    """Options of the search over paths.

    The paper moves in noise levels; on a grid of a dozen steps the same distances are counted in steps of the grid.

    Attributes:
        paths: N, trajectories that are kept.
        expansions: M, noised copies of each in a round.
        first_steps: steps of the grid that the first trajectories take before they are widened.
        forward_steps: Δf, steps of the grid that a round goes back up by adding noise.
        backward_steps: Δb, steps of the grid that it then comes down by the ODE.
    """

    paths: int = 2
    expansions: int = 4
    first_steps: int = 2
    forward_steps: int = 1
    backward_steps: int = 3

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        for option in ("paths", "expansions", "first_steps", "forward_steps"):
            require(getattr(self, option) >= 1, option, "is below 1; pass 1 or more")
        require(
            self.backward_steps > self.forward_steps,
            "backward_steps",
            f"must be above forward_steps ({self.forward_steps}), or no path comes to its end",
        )


def renoise(
    x: Float[Tensor, "row channel height width"],
    levels: tuple[Tensor, Tensor],
    levels_up: tuple[Tensor, Tensor],
    z: Float[Tensor, "row channel height width"],
) -> Float[Tensor, "row channel height width"]:
    """The forward process from one noise level to a higher one: `x_u = (α_u/α) x + √(σ_u² − (α_u/α)² σ²) z`.

    Args:
        x: latents.
        levels: their α and σ, float64.
        levels_up: α_u and σ_u.
        z: standard normal noise.

    Returns:
        Noisier latents.
    """
    (alpha, sigma), (alpha_up, sigma_up) = levels, levels_up
    share = alpha_up / alpha
    deviation = (sigma_up**2 - (share * sigma) ** 2).clamp(min=0).sqrt()
    return share.to(x) * x + deviation.to(x) * z


class PathSearch(SessionSearch[PathOptions]):
    """N trajectories; in each round M noised copies of each go down again, and the N best of all copies are kept."""

    Options = PathOptions

    def run(self, session: Session, number: int) -> None:
        """From noise to the clean end; where the budget ends first, the kept paths are finished as they are.

        Args:
            session: pays, scores and keeps the best.
            number: the run's number.
        """
        options, times = self.options, session.times
        kept = min(options.paths, session.left // options.steps)
        place = min(options.first_steps, options.steps)
        x = session.noise(kept, "latent", first=number * options.paths)
        x = session.walk(x, times[: place + 1])
        round_ = 0
        while place < options.steps:
            low = min(place - min(options.forward_steps, place) + options.backward_steps, options.steps)
            if session.left < self._price(kept, place, low):
                session.offer(session.score(session.walk(x, times[place:])))
                return
            x = self._round(session, x, kept, place, low, (number, round_))
            place, round_ = low, round_ + 1
        if round_ == 0:  # the first trajectories went all the way
            session.offer(session.score(x))

    def _price(self, kept: int, place: int, low: int) -> int:
        """Predictions of a round, of the estimates at its end, and of finishing the kept paths from there."""
        steps, copies = self.options.steps, kept * self.options.expansions
        down = low - max(place - self.options.forward_steps, 0)
        return copies * down + (copies + kept * (steps - low) if low < steps else 0)

    def _round(
        self, session: Session, x: Tensor, kept: int, place: int, low: int, counters: tuple[int, int]
    ) -> Float[Tensor, "row channel height width"]:
        copies, times = self.options.expansions, session.times
        high = max(place - self.options.forward_steps, 0)
        here, up = (session.policy.levels(torch.tensor(times[i], device=x.device)) for i in (place, high))
        z = session.noise(kept * copies, "renoise", *counters)
        x = renoise(x.repeat_interleave(copies, dim=0), here, up, z)
        x = session.walk(x, times[high : low + 1])
        done = low == self.options.steps
        scored = session.score(x if done else session.predict(x, times[low]).x0)
        if done:
            session.offer(scored)
        return session.pick(x, scored.top(kept))
