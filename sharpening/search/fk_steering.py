"""FK steering: a particle filter over the sampler (`zacharyhorvitz/Fk-Diffusion-Steering`, arXiv 2501.06848)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.options.base import require
from sharpening.search.base import SearchOptions, require_positive
from sharpening.search.runs import SessionSearch
from sharpening.search.scoring import Scored
from sharpening.search.session import Session


@dataclass(frozen=True)
class FKOptions(SearchOptions):
    """Options of FK steering. Published: 4 particles, λ = 10 for ImageReward, η = 1, resampling every 5 steps from 5 to
    30 of 100.

    λ goes with the reward's unit: under the CLIP score, cosine × 100, particles lie points apart, and 10 a point would
    leave the best alone. All that a budget pays for walk together, since one large filter chooses among more.

    Attributes:
        particles: N; 0 takes as many as the budget pays for, so that there is a single run.
        potential: what a particle is weighted by: the reward's "difference" since it was last resampled, the
            "max" or the "sum" of its rewards so far.
        reward_scale: λ, per unit of the reward.
        resample_from: first step of the grid, from 0, at which particles are resampled; the published span of the
            sampler, 5 to 30 per cent, is steps 1 to 4 of 12.
        resample_to: last such step.
        resample_every: steps from one to the next.
        adaptive: resample only where the effective number of particles is below N/2.
        eta: η of the sampler's steps; copies of a particle part by its noise.
    """

    particles: int = 0
    potential: Literal["difference", "max", "sum"] = "difference"
    reward_scale: float = 0.2
    resample_from: int = 1
    resample_to: int = 4
    resample_every: int = 1
    adaptive: bool = True
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(self.particles >= 0, "particles", "is below 0; pass 1 or more, or 0 for what the budget allows")
        require(self.resample_from >= 0, "resample_from", "is below 0; pass 0 or more")
        require(self.resample_every >= 1, "resample_every", "is below 1; pass 1 or more")
        require(self.potential in ("difference", "max", "sum"), "potential", "must be one of difference, max, sum")
        require_positive(self, "reward_scale", "eta")


@dataclass
class Particles:
    """Weights and reward histories of N particles of each prompt.

    Attributes:
        log_weight: sum of the log potentials since the last resampling; −∞ for one whose image could not be scored.
        summary: what the potential remembers of a particle's rewards: the last (difference), greatest (max) or sum.
    """

    log_weight: Float[Tensor, "prompt particle"]
    summary: Float[Tensor, "prompt particle"]

    @classmethod
    def start(cls, prompts: int, particles: int, potential: str) -> Particles:
        """Before the first reward.

        Args:
            prompts: P.
            particles: N.
            potential: "difference", "max" or "sum".

        Returns:
            Equal weights.
        """
        first = -torch.inf if potential == "max" else 0.0
        shape = (prompts, particles)
        return cls(torch.zeros(shape).double(), torch.full(shape, first).double())

    def weigh(self, scored: Scored, potential: str, reward_scale: float) -> None:
        """Multiply the weights by `exp(λ Δr)`, `exp(λ max r)` or `exp(λ Σ r)` over a particle's rewards so far.

        Args:
            scored: the particles' images at this step.
            potential: "difference", "max" or "sum".
            reward_scale: λ, per unit of the reward.
        """
        r = scored.rewards
        summary = {"difference": r, "max": torch.maximum(self.summary, r), "sum": self.summary + r}[potential]
        gain = summary - self.summary if potential == "difference" else summary
        self.log_weight = self.log_weight + (reward_scale * gain).masked_fill(~scored.valid, -torch.inf)
        self.summary = torch.where(scored.valid, summary, self.summary)

    def weights(self) -> Float[Tensor, "prompt particle"]:
        """Normalised weights.

        Returns:
            They add up to 1; equal where no particle has any.
        """
        lost = ~self.log_weight.isfinite().any(1, keepdim=True)
        return self.log_weight.masked_fill(lost, 0.0).softmax(1)

    def resample(self, u: Float[Tensor, "prompt particle"], adaptive: bool) -> Int[Tensor, "prompt particle"]:
        """Draw particles by their weights, which then are equal again.

        Args:
            u: uniform numbers in [0, 1).
            adaptive: leave a prompt's particles as they are while `1 / Σ w²` is at least N/2.

        Returns:
            Which particle stands at each place from now on.
        """
        w = self.weights()
        drawn = resample(w, u)
        stay = torch.arange(w.shape[1]).expand_as(drawn)
        keep = (effective_size(w) >= w.shape[1] / 2 if adaptive else torch.zeros(len(w)).bool())[:, None]
        places = torch.where(keep, stay, drawn)
        self.log_weight = torch.where(keep, self.log_weight, torch.zeros_like(w))
        self.summary = self.summary.gather(1, places)
        return places


def effective_size(weights: Float[Tensor, "prompt particle"]) -> Float[Tensor, " prompt"]:
    """Effective number of particles, `1 / Σ w²`.

    Args:
        weights: w, adding up to 1.

    Returns:
        Between 1 and N.
    """
    return 1 / weights.square().sum(1)


def resample(
    weights: Float[Tensor, "prompt particle"], u: Float[Tensor, "prompt particle"]
) -> Int[Tensor, "prompt particle"]:
    """Multinomial resampling by the inverse of the cumulative weights.

    Args:
        weights: w, adding up to 1.
        u: uniform numbers in [0, 1).

    Returns:
        The particle drawn for each place; one of weight 0 never is.
    """
    edges = weights.double().cumsum(1)
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).double().argmax(1, keepdim=True)
    return torch.searchsorted(edges, u.double() * edges[:, -1:], right=True).minimum(last)


class FKSteering(SessionSearch[FKOptions]):
    """N particles walk down together; the predicted clean image's reward decides which are copied and which end.

    Weights of steps without a resampling are carried on to the next (the released code forgets them). A particle is
    copied before its noise is drawn, so that copies part at once. The best of the final images is returned; the
    released code's last resampling could only lose it.
    """

    Options = FKOptions

    def run(self, session: Session, number: int) -> None:
        """N images.

        Args:
            session: pays, scores and keeps the best.
            number: the run's number.
        """
        options, times = self.options, session.times
        count = min(options.particles or session.left, session.left // options.steps)
        x = session.noise(count, "latent", first=number * options.particles)
        particles = Particles.start(len(session.prompts), count, options.potential)
        for i in range(options.steps):
            prediction = session.predict(x, times[i])
            if count > 1 and self._due(i):
                particles.weigh(session.score(prediction.x0), options.potential, options.reward_scale)
                places = particles.resample(session.uniform(count, "resample", number, i), options.adaptive)
                x, prediction = session.pick(x, places), session.pick_prediction(prediction, places)
            z = session.noise(count, "step", number, i)
            x = session.step(x, times[i], times[i + 1], prediction, options.eta, z)
        session.offer(session.score(x))

    def _due(self, i: int) -> bool:
        options = self.options
        inside = options.resample_from <= i <= options.resample_to
        return inside and (i - options.resample_from) % options.resample_every == 0
