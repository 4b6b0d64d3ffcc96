"""How long a reward is waited for: pauses between attempts, and a deadline over all of them. Needs no Ray."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
LAST_TRY_S = 0.05
"""Seconds of the attempt that is made as the deadline passes."""


class NoAnswer(Exception):
    """An attempt had no answer; another may have one.

    Attributes:
        reason: what happened, in one line.
        timed_out: whether time ran out, as against something failing.
        retry_after_s: seconds after which the other side wants to be asked again, if it said so.
    """

    def __init__(self, reason: str, timed_out: bool = False, retry_after_s: float | None = None) -> None:
        """Say why.

        Args:
            reason: what happened, in one line.
            timed_out: whether time ran out.
            retry_after_s: seconds after which the other side wants to be asked again, if it said so.
        """
        super().__init__(reason)
        self.reason, self.timed_out, self.retry_after_s = reason, timed_out, retry_after_s


class Patience:
    """Attempts at one call, until its deadline: pauses double from 0.1 to 2 seconds, with jitter.

    An attempt raises `NoAnswer` to be repeated; the last one's is raised again when the deadline has passed.
    """

    def __init__(self, request_timeout_s: float, deadline_s: float) -> None:
        """Start the clock.

        Args:
            request_timeout_s: seconds one attempt may take.
            deadline_s: seconds after which the call gives up.
        """
        self._request_timeout_s, self._end = request_timeout_s, time.monotonic() + deadline_s
        self._started = time.monotonic()
        # Its own state: the global one belongs to whoever seeded it. Actors must not come back all at once.
        self._jitter = random.Random()

    def remaining(self) -> float:
        """Seconds until the deadline; not below 0."""
        return max(0.0, self._end - time.monotonic())

    def elapsed(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._started

    def timeout(self) -> float:
        """Seconds that an attempt which begins now may take."""
        return min(self._request_timeout_s, max(self.remaining(), LAST_TRY_S))

    def retrying(self, before_sleep: Callable[[RetryCallState], None] | None = None) -> Retrying:
        """Repeats a function.

        Args:
            before_sleep: told of each attempt that is going to be repeated.

        Returns:
            A callable that takes the function and its arguments.
        """
        return Retrying(**self._policy(before_sleep))

    def retrying_async(self, before_sleep: Callable[[RetryCallState], None] | None = None) -> AsyncRetrying:
        """Repeats a coroutine function; see `retrying`.

        Args:
            before_sleep: told of each attempt that is going to be repeated.

        Returns:
            A callable that takes the coroutine function and its arguments.
        """
        return AsyncRetrying(**self._policy(before_sleep))

    def _policy(self, before_sleep: Callable[[RetryCallState], None] | None) -> dict[str, Any]:
        return {
            "retry": retry_if_exception_type(NoAnswer), "wait": self._pause, "reraise": True,
            "stop": lambda state: self.remaining() <= 0, "before_sleep": before_sleep,
        }  # fmt: skip

    def _pause(self, state: RetryCallState) -> float:
        doubled = FIRST_PAUSE_S * 2.0 ** min(state.attempt_number - 1, 16)
        pause = min(doubled, LONGEST_PAUSE_S) * self._jitter.uniform(0.5, 1.0)
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, NoAnswer) and error.retry_after_s else 0.0
        return min(max(pause, asked), self.remaining())
