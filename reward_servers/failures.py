"""Errors of calls through Ray: which are worth another try, and what they say."""

from __future__ import annotations

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from sharpening.rewards.base import RewardUnavailable


def raised_by_scorer(error: BaseException) -> bool:
    """Whether the scorer refused, and would again, as against Ray, Serve or a service behind the scorer failing.

    Args:
        error: what a call of a deployment raised.

    Returns:
        True if asking again is of no use.
    """
    passing = (RayError, RayServeException, RewardUnavailable)
    return isinstance(error, RayTaskError) and not isinstance(error.cause, passing)


def one_line(error: BaseException) -> str:
    """What an error says, without traces.

    Args:
        error: any error.

    Returns:
        Its first line, at most 200 characters.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    words = str(cause).strip().splitlines()
    return words[0][:200] if words else type(cause).__name__
