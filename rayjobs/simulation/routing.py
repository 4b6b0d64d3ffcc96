"""How an actor chooses a replica of the reward, as Ray Serve's handles do (its `PowerOfTwoChoicesRequestRouter`)."""

from collections.abc import Sequence

import numpy as np

from rayjobs.simulation.events import Clock, Station

MEMORY_S = 10.0  # Serve's RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S


class Handle:
    """One actor's handle: of two replicas, drawn at random, it takes the one whose queue it believes to be shorter.

    It remembers the length that a replica told when it took a request, less the requests that have come back since. It
    asks for lengths that it does not know; but where it knows that of one of the two, it does not wait for the answer.

    Args:
        clock: The simulation's.
        replicas: The replicas.
        random: Draws the two.
        memory: Seconds for which a length is remembered; 0: every length is asked for.
    """

    def __init__(self, clock: Clock, replicas: Sequence[Station], random: np.random.Generator, memory: float) -> None:
        self._clock, self._replicas, self._random, self._memory = clock, replicas, random, memory
        self._lengths: dict[int, tuple[int, float]] = {}

    def choose(self) -> int:
        """Choose a replica for a request.

        Returns:
            Its place among the replicas.
        """
        if len(self._replicas) == 1:
            return 0
        pair = [int(place) for place in self._random.choice(len(self._replicas), 2, replace=False)]
        known = {place: self._remembered(place) for place in pair}
        unknown = [place for place in pair if known[place] is None]
        for place in unknown:
            self._remember(place, self._replicas[place].present)
        if len(unknown) < len(pair):
            pair = [place for place in pair if place not in unknown]
        return min(pair, key=lambda place: self._lengths[place][0])

    def sent(self, place: int) -> None:
        """A replica took a request, and told how many it has now.

        Args:
            place: Its place.
        """
        self._remember(place, self._replicas[place].present)

    def done(self, place: int) -> None:
        """A request came back.

        Args:
            place: The replica's place.
        """
        length = self._remembered(place)
        if length is not None:
            self._remember(place, max(0, length - 1))

    def _remembered(self, place: int) -> int | None:
        length, since = self._lengths.get(place, (0, -np.inf))
        return length if self._memory and self._clock.now - since <= self._memory else None

    def _remember(self, place: int, length: int) -> None:
        self._lengths[place] = (length, self._clock.now)
