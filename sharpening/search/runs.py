"""A search as runs of one algorithm within a budget; what a search's own file adds is the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch

from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn
from sharpening.search.base import BudgetTooSmall, SearchOptions, SearchResult, SearchSeeds
from sharpening.search.session import Session


def candidates_for(purse: int, price: int, choices: int, most: int, free: int = 0) -> int:
    """How many candidates a choice may try, so that a short budget is shared out over the choices still to come.

    Args:
        purse: predictions left for choices.
        price: predictions that a candidate costs.
        choices: choices to come, this one included.
        most: never more than these.
        free: candidates that cost nothing.

    Returns:
        An equal share, but at least 2 where the purse holds them; below 2 there is no choice.
    """
    return min(most, free + purse // price, max(free + purse // (price * choices), 2))


OptionsT = TypeVar("OptionsT", bound=SearchOptions)


class SessionSearch(ABC, Generic[OptionsT]):
    """A search as runs of one algorithm: a run spends what it needs, and as long as the budget pays for another
    image, another run starts from other noise. The best finished image of all runs is returned.

    Attributes:
        Options: class of the search's options.
        options: the search's options.
    """

    Options: ClassVar[type[SearchOptions]]

    def __init__(self, options: OptionsT | None = None) -> None:
        """Make the search.

        Args:
            options: None means the defaults.
        """
        self.options: OptionsT = options or self.Options()  # type: ignore[assignment]

    @abstractmethod
    def run(self, session: Session, number: int) -> None:
        """One run within what the session has left, which pays for at least `smallest` predictions.

        Args:
            session: pays, scores and keeps the best.
            number: the run's number, from 0; its noise must depend on it.
        """

    @property
    def smallest(self) -> int:
        """Predictions of the smallest run: one image, drawn without a search."""
        return self.options.steps

    @torch.no_grad()
    def search(
        self, policy: Policy, score: ScoreFn, prompts: Sequence[str], budget: int, seeds: SearchSeeds
    ) -> SearchResult:
        """Find a good image for each prompt.

        Args:
            policy: the model, left as it is.
            score: the reward.
            prompts: P prompts, at least one.
            budget: denoiser evaluations an image may cost; never exceeded.
            seeds: counters of all random numbers; one index a prompt.

        Returns:
            The best images with their rewards and cost.

        Raises:
            BudgetTooSmall: if the budget does not pay for one image.
            ValueError: if there is no prompt, prompts and indices differ in number, or the reward answers for another
                number of images.
        """  # noqa: DOC502
        smallest = self.smallest * policy.prediction_nfe(self.options.guidance_scale)
        if budget < smallest:
            raise BudgetTooSmall(budget, smallest)
        session = Session(policy, score, prompts, budget, seeds, self.options)
        number = 0
        while session.left >= self.smallest:
            self.run(session, number)
            number += 1
        return session.result()
