"""Zero-order search: climb in the space of initial noises (Ma et al. 2025, arXiv 2501.09732)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sharpening.options.base import require
from sharpening.sampling import sample
from sharpening.search.base import SearchOptions
from sharpening.search.runs import SessionSearch
from sharpening.search.session import Session


@dataclass(frozen=True)
class ZeroOrderOptions(SearchOptions):
    """Options of zero-order search. Published: 4 neighbours at λ = 0.95, and the best of them always follows the pivot.

    A budget of sixteen images is four such rounds, too few for steps that small: the default steps are larger and keep
    a pivot that no neighbour betters.

    Attributes:
        neighbours: neighbours of the pivot in a round.
        similarity: λ, cosine between the pivot and its neighbours.
        keep_pivot: whether the pivot stays where no neighbour is better; else the best neighbour always follows it.
    """

    neighbours: int = 4
    similarity: float = 0.7
    keep_pivot: bool = True

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(self.neighbours >= 1, "neighbours", "is below 1; pass 1 or more")
        require(-1 < self.similarity < 1, "similarity", "must lie between -1 and 1, both left out")


def neighbours(
    pivot: Float[Tensor, "row channel height width"],
    w: Float[Tensor, "row channel height width"],
    similarity: float,
) -> Float[Tensor, "row channel height width"]:
    """Noises of the pivot's norm at a cosine of λ from it: `‖n‖ (λ u + √(1−λ²) v)`, u = n / ‖n‖.

    Args:
        pivot: n.
        w: standard normal noise; v is its part orthogonal to n, normalised.
        similarity: λ.

    Returns:
        One neighbour a row.
    """
    n, w = pivot.flatten(1).double(), w.flatten(1).double()
    length = n.norm(dim=1, keepdim=True)
    u = n / length
    v = w - (w * u).sum(1, keepdim=True) * u
    v = v / v.norm(dim=1, keepdim=True)
    return (length * (similarity * u + (1 - similarity**2) ** 0.5 * v)).view_as(pivot).to(pivot)


class ZeroOrderSearch(SessionSearch[ZeroOrderOptions]):
    """From a first noise, the pivot, to the best of its neighbours, and again, as far as the budget goes."""

    Options = ZeroOrderOptions

    def run(self, session: Session, number: int) -> None:
        """All rounds; the last has as many neighbours as the budget still pays for.

        Args:
            session: pays, scores and keeps the best.
            number: 0, as one run leaves nothing.
        """
        options, steps = self.options, self.options.steps
        pivot = session.noise(1, "latent")
        scored = session.score(sample(session.policy, session.condition(1), pivot, steps, options.guidance_scale))
        session.offer(scored)
        round_ = 0
        while session.left >= steps:
            count = min(options.neighbours, session.left // steps)
            w = session.noise(count, "neighbour", round_)
            found = neighbours(pivot.repeat_interleave(count, dim=0), w, options.similarity)
            x0 = sample(session.policy, session.condition(count), found, steps, options.guidance_scale)
            scored, before = session.score(x0), session.best_rewards()
            session.offer(scored)
            best = scored.top(1)
            moves = scored.valid.gather(1, best)
            if options.keep_pivot:
                moves &= scored.rewards.gather(1, best) > before[:, None]
            pivot = torch.where(moves[..., None, None].to(pivot.device), session.pick(found, best), pivot)
            round_ += 1
