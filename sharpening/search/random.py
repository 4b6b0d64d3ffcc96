"""Random search: the best of N images (Ma et al. 2025, arXiv 2501.09732)."""

from __future__ import annotations

from sharpening.sampling import sample
from sharpening.search.base import SearchOptions
from sharpening.search.runs import SessionSearch
from sharpening.search.session import Session


class RandomSearch(SessionSearch[SearchOptions]):
    """Best of N initial noises, in rounds of 1, 2, 4, … as far as the budget goes; a larger budget adds candidates."""

    Options = SearchOptions

    def run(self, session: Session, number: int) -> None:
        """All rounds; the last has as many candidates as the budget still pays for.

        Args:
            session: pays, scores and keeps the best.
            number: 0, as one run leaves nothing.
        """
        steps, drawn, count = self.options.steps, 0, 1
        while session.left >= steps:
            count = min(count, session.left // steps)
            initial = session.noise(count, "latent", first=drawn)
            x0 = sample(session.policy, session.condition(count), initial, steps, self.options.guidance_scale)
            session.offer(session.score(x0))
            drawn, count = drawn + count, 2 * count
