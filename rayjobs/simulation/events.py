"""Events in simulated time, and the two things that are waited for: servers with a queue, and a shared line."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable

Then = Callable[[], None]


class Clock:
    """Simulated seconds. Events of the same moment happen in the order in which they were asked for.

    Attributes:
        now: Seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._order = itertools.count()

    def after(self, seconds: float, then: Then) -> None:
        """Let something happen later.

        Args:
            seconds: From now.
            then: What happens.
        """
        heapq.heappush(self._events, (self.now + seconds, next(self._order), then))

    def run(self, ended: Callable[[], bool]) -> None:
        """Let events happen until one ends the simulation, or none is left.

        Args:
            ended: Asked after each event.
        """
        while self._events and not ended():
            self.now, _, then = heapq.heappop(self._events)
            then()


class Station:
    """Equal servers behind one queue, first come, first served.

    Args:
        clock: The simulation's.
        servers: How many work at a time.

    Attributes:
        busy: Server-seconds spent on what is done.
        waited: Seconds that what is done had waited.
        served: How many are done.
        present: How many are being served or wait.
    """

    def __init__(self, clock: Clock, servers: int) -> None:
        self._clock, self._free = clock, servers
        self._queue: deque[tuple[float, float, Callable[[float], None]]] = deque()
        self.busy = self.waited = 0.0
        self.served = 0
        self.present = 0

    def serve(self, seconds: float, then: Callable[[float], None]) -> None:
        """Ask for service.

        Args:
            seconds: How long it takes.
            then: What happens afterwards; told how many seconds were waited.
        """
        self.present += 1
        self._queue.append((self._clock.now, seconds, then))
        self._start()

    def _start(self) -> None:
        if not self._free or not self._queue:
            return
        self._free -= 1
        arrived, seconds, then = self._queue.popleft()
        waited = self._clock.now - arrived

        def finish() -> None:
            self._free += 1
            self.present -= 1
            self.busy += seconds
            self.waited += waited
            self.served += 1
            self._start()
            then(waited)

        self._clock.after(seconds, finish)


class Line:
    """A network line whose bandwidth is shared equally by what is on its way.

    Args:
        clock: The simulation's.
        bandwidth: Bytes a second; may be infinite.

    Attributes:
        busy: Seconds in which something was on its way.
    """

    def __init__(self, clock: Clock, bandwidth: float) -> None:
        self._clock, self._bandwidth = clock, bandwidth
        # Every transfer on its way gets the same bytes; `_given` is what one that was there from the start would have.
        self._given = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, Then]] = []  # by what must have been given
        self._order = itertools.count()
        self._epoch = 0
        self.busy = 0.0

    def send(self, size: float, then: Then) -> None:
        """Send something.

        Args:
            size: Bytes.
            then: What happens when it has arrived.
        """
        if size == 0 or math.isinf(self._bandwidth):
            self._clock.after(0.0, then)
            return
        self._advance()
        heapq.heappush(self._ends, (self._given + size, next(self._order), then))
        self._plan()

    def _advance(self) -> None:
        passed, self._since = self._clock.now - self._since, self._clock.now
        if self._ends:
            self.busy += passed
            self._given += passed * self._bandwidth / len(self._ends)

    def _plan(self) -> None:
        """Plan the next arrival; what was planned before does not count any more."""
        self._epoch += 1
        epoch = self._epoch
        if self._ends:
            left = (self._ends[0][0] - self._given) * len(self._ends) / self._bandwidth
            self._clock.after(max(0.0, left), lambda: self._arrive(epoch))

    def _arrive(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        self._advance()
        first = self._ends[0][0]
        self._given = max(self._given, first)
        arrived = []
        while self._ends and self._ends[0][0] <= first * (1 + 1e-12):
            arrived.append(heapq.heappop(self._ends)[2])
        self._plan()
        for then in arrived:
            then()
