"""Free²Guide: choose or average the noise of each early step by the reward of what it leads to.

The method is arXiv 2411.17041 and `kjm981995/free2guide`; path-integral control without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sharpening.options.base import require
from sharpening.path_integral import branch_weights
from sharpening.policies.base import Prediction
from sharpening.search.base import SearchOptions, require_positive
from sharpening.search.runs import SessionSearch, candidates_for
from sharpening.search.scoring import Scored
from sharpening.search.session import CLEAN, Session


@dataclass(frozen=True)
class Free2GuideOptions(SearchOptions):
    """Options of Free²Guide. Published: 10 candidates, for the first noise and on 5 of 50 steps, DDIM with η = 1.

    Five of 50 steps end before the first of a dozen does, which leaves nothing to choose there: by default nearly all
    of a dozen steps are guided, and what the fewer steps save goes into candidates.

    Attributes:
        candidates: initial noises, and noises drawn at a guided step; fewer where the budget is short.
        guided_steps: steps whose noise is chosen, from the second step on.
        form: "argmax" takes the best noise, "path_integral" the average under weights `exp(r / λ)`.
        temperature: λ of the path integral, in the reward's unit.
        eta: η of the sampler's steps.
    """

    candidates: int = 16
    guided_steps: int = 10
    form: Literal["argmax", "path_integral"] = "argmax"
    temperature: float = 1.0
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(self.candidates >= 2, "candidates", "is below 2; a choice needs 2 or more")
        require(self.guided_steps >= 0, "guided_steps", "is below 0; pass 0 or more")
        require(self.form in ("argmax", "path_integral"), "form", "must be one of argmax, path_integral")
        require_positive(self, "temperature", "eta")


def average_noise(
    z: Float[Tensor, "prompt candidate channel height width"],
    rewards: Float[Tensor, "prompt candidate"],
    valid: Bool[Tensor, "prompt candidate"],
    temperature: float,
) -> Float[Tensor, "prompt channel height width"]:
    """Path-integral control, `z* = Σ_j w_j z_j` with `w = softmax(r / λ)`; shorter than a noise where many weigh in.

    Args:
        z: the noises.
        rewards: r, in the reward's unit.
        valid: which of them exist; the others weigh nothing.
        temperature: λ, in the reward's unit.

    Returns:
        One noise a prompt; the first where no reward exists.
    """
    weights = branch_weights(rewards.masked_fill(~valid, -torch.inf), temperature)
    first = torch.zeros_like(weights)
    first[:, 0] = 1
    weights = torch.where(valid.any(1, keepdim=True), weights, first)
    return torch.einsum("bk,bkchw->bchw", weights.to(z), z)


class Free2GuideSearch(SessionSearch[Free2GuideOptions]):
    """The best of several initial noises, then the best (or the average) of several noises at each guided step.

    The prediction that a chosen candidate was scored by serves its next step as well.
    """

    Options = Free2GuideOptions

    def run(self, session: Session, number: int) -> None:
        """One image.

        Args:
            session: pays, scores and keeps the best.
            number: the run's number.
        """
        options, times = self.options, session.times
        x, prediction = self._start(session, number)
        for i in range(options.steps):
            count = self._count(session, i) if 1 <= i <= self._last else 1
            z = session.noise(count, "step", number, i)
            if count == 1:
                x = session.step(x, times[i], times[i + 1], prediction, options.eta, z)
                prediction = session.predict(x, times[i + 1]) if times[i + 1] != CLEAN else prediction
            else:
                x, prediction = self._guided(session, x, prediction, (times[i], times[i + 1]), z)
        session.offer(session.score(x))

    def _start(self, session: Session, number: int) -> tuple[Tensor, Prediction]:
        """The initial noise whose predicted clean image is best, with its prediction."""
        options = self.options
        count = candidates_for(session.left - options.steps, 1, 1 + self._last, options.candidates, free=1)
        x = session.noise(count, "latent", first=number * options.candidates)
        prediction = session.predict(x, session.times[0])
        if count == 1:
            return x, prediction
        best = session.score(prediction.x0).top(1)
        return session.pick(x, best), session.pick_prediction(prediction, best)

    @property
    def _last(self) -> int:
        """The last guided step; the step to the clean end has no noise to choose."""
        return max(min(self.options.guided_steps, self.options.steps - 2), 0)

    def _count(self, session: Session, i: int) -> int:
        """Noises that step i tries; a chosen one's prediction is the next step's, an average needs its own."""
        free = 1 if self.options.form == "argmax" else 0
        purse = session.left - (self.options.steps - 1 - i)
        return max(candidates_for(purse, 1, self._last - i + 1, self.options.candidates, free), 1)

    def _guided(
        self, session: Session, x: Tensor, prediction: Prediction, times: tuple[int, int], z: Tensor
    ) -> tuple[Tensor, Prediction]:
        """Try the noises z on one step and take the best or the average, with the prediction after it."""
        count = len(z) // len(session.prompts)
        copies = torch.zeros(len(session.prompts), count, dtype=torch.long)
        spread = session.pick_prediction(prediction, copies)
        tried = session.step(session.pick(x, copies), *times, spread, self.options.eta, z)
        ahead = session.predict(tried, times[1])
        scored: Scored = session.score(ahead.x0)
        if self.options.form == "argmax":
            best = scored.top(1)
            return session.pick(tried, best), session.pick_prediction(ahead, best)
        z = z.unflatten(0, (-1, count))
        z = average_noise(z, scored.rewards.to(z), scored.valid.to(z.device), self.options.temperature)
        x = session.step(x, *times, prediction, self.options.eta, z)
        return x, session.predict(x, times[1])
