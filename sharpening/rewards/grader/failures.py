"""Why there is no answer: what is worth another try, what concerns one image, and what stops everything."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

from sharpening.rewards.base import FailureReason, RewardMisconfigured
from sharpening.rewards.grader.endpoint import Endpoint

NO_CREDIT = 402  # as OpenRouter and others say it
TRY_AGAIN = (408, 409, 429)  # and everything from 500 on
_FLAGGED = ("moderation", "flagged", "content_policy", "content policy", "content_filter", "safety")


class NoGrade(Exception):
    """One image has no grade.

    Attributes:
        reason: why, as `Scores.failures` has it.
    """

    def __init__(self, reason: FailureReason, words: str) -> None:
        """Note why.

        Args:
            reason: one of the kinds of failure.
            words: more of it, for logs.
        """
        super().__init__(words)
        self.reason = reason


def worth_another_try(error: BaseException) -> bool:
    """Whether the same request may be answered later: too many requests, server's errors, lost or slow connections."""
    if isinstance(error, APIStatusError):
        return (error.status_code in TRY_AGAIN or error.status_code >= 500) and not _out_of_credit(error)
    return isinstance(error, APIConnectionError | TimeoutError)


def seconds_asked_for(error: BaseException) -> float:
    """Seconds that a response asks the client to wait (`Retry-After`, in seconds or as a date); 0 where it does not."""
    if not isinstance(error, APIStatusError):
        return 0.0
    asked = error.response.headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0


def failure(error: OpenAIError | TimeoutError, endpoint: Endpoint) -> NoGrade | RewardMisconfigured:
    """What an error that was not mended means.

    Args:
        error: what the client raised last.
        endpoint: whom it had asked.

    Returns:
        Why this image has no grade, or why none will have one. It holds no trace of the request, and so no key.
    """
    if isinstance(error, TimeoutError | APITimeoutError):
        return NoGrade("timeout", "no answer in time")
    if isinstance(error, APIStatusError):
        return _refusal(error, endpoint)
    cause = error.__cause__ or error
    return NoGrade("unavailable", endpoint.redact(f"{error} {type(cause).__name__}: {cause}"))


def words_of_refusal(error: APIStatusError) -> str:
    """What an endpoint said when it refused: the message in OpenAI's form, or else all of it."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return f"status {error.status_code}: {message or error.response.text}"


def _refusal(error: APIStatusError, endpoint: Endpoint) -> NoGrade | RewardMisconfigured:
    status, where = error.status_code, f"the grader at {endpoint.url}"
    words = endpoint.redact(words_of_refusal(error))
    if status == 401 or (status == 403 and not any(word in words.lower() for word in _FLAGGED)):
        return RewardMisconfigured(
            f"{where} does not accept the API key (status {status}); set the environment variable "
            f"{endpoint.key_variable} to one that may use {endpoint.model}"
        )
    if status == 404:
        return RewardMisconfigured(
            f"{where} does not know the model {endpoint.model} or that address ({words}); pass a model that it has, "
            "and a URL up to and including /v1"
        )
    if _out_of_credit(error):
        return RewardMisconfigured(f"{where} says that the account of {endpoint.key_variable} has no credit left")
    if worth_another_try(error):
        return NoGrade("unavailable", words)
    return NoGrade("rejected", words)


def _out_of_credit(error: APIStatusError) -> bool:
    return error.status_code == NO_CREDIT or error.code == "insufficient_quota"
