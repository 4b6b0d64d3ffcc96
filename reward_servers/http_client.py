"""A reward behind an HTTP gateway as a `ScoreFn`, registered as `http`: `--reward http --reward_model URL#NAME`."""

from __future__ import annotations

import json
import logging
import os
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from pydantic import ValidationError
from tenacity import RetryCallState

from reward_servers.gateway_options import TOKEN_VARIABLE, Limits
from reward_servers.http_schema import RewardsAnswer, ScoreAnswer
from reward_servers.images import png
from reward_servers.patience import NoAnswer, Patience
from sharpening.rewards.base import RewardUnavailable, Scores, all_failed
from sharpening.rewards.requests import check_request

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S, START_S = 10.0, 30.0
"""Seconds for a connection, and for the server to answer at all when the scorer is made."""

OVERHEAD_BYTES = 64
"""What an item's braces and names need in JSON, generously."""


class HttpRewardError(ValueError):
    """The address, the reward's name or the token is wrong; asking again would not help."""


class HttpScore:
    """Asks a reward behind an HTTP gateway (`reward_servers.gateway`), and blocks for the answer.

    Images travel as PNG, so scores are those of the scorer in the process, bit for bit, where machine, versions and
    threads are equal. A call is split into requests within the server's limits. Connections that fail, attempts that
    take longer than `request_timeout_s`, and the answers 429 and 5xx are repeated, no sooner than `Retry-After` says,
    until `deadline_s` after the call began. What the server refuses is not repeated: those images have the failure
    "rejected", and the reason is logged.
    """

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        batch_size: int = 256,
        reward: str | None = None,
        token_variable: str = TOKEN_VARIABLE,
        request_timeout_s: float = 60.0,
        deadline_s: float = 300.0,
    ) -> None:
        """Ask the server what it has.

        Args:
            model: the gateway's address, such as `http://127.0.0.1:8000`, with `#name` for one reward of several.
            device: taken as every scorer takes it; nothing is computed here.
            batch_size: images of a request at most.
            reward: name of the reward, instead of the address's fragment; needed if the server has several.
            token_variable: environment variable that holds the bearer token; without it, none is sent.
            request_timeout_s: seconds one attempt may take.
            deadline_s: seconds after which a call gives up.

        Raises:
            HttpRewardError: if the address is none, or the server does not have the reward or wants another token.
            ValueError: if `batch_size` is below 1.
            RewardUnavailable: if it did not answer for 30 seconds.
        """  # noqa: DOC502
        parts = urlsplit(model)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HttpRewardError(f"'{model}' is no address of a reward server; pass one like http://127.0.0.1:8000")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; pass 1 or more")
        self._arguments = (model, device, batch_size, reward, token_variable, request_timeout_s, deadline_s)
        self.url = parts._replace(fragment="").geturl().rstrip("/")
        self._request_timeout_s, self._deadline_s = request_timeout_s, deadline_s
        token = os.environ.get(token_variable)
        self._token_variable = token_variable
        self._client = httpx.Client(headers={"Authorization": f"Bearer {token}"} if token else {})
        self.name, limits = self._find(reward or parts.fragment or None)
        self._limits = limits.model_copy(update={"max_items": min(batch_size, limits.max_items)})

    def __reduce__(self) -> tuple[Any, ...]:
        return HttpScore, self._arguments

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            Scores of the N images. Failures are those of the server; "rejected" where it refused a request, and
            "unreadable answer" where what came back are no scores.

        Raises:
            RewardUnavailable: if there was no answer until the deadline.
            HttpRewardError: if the server wants another token.
            ValueError: if the arguments have other shapes or types.
        """  # noqa: DOC502
        check_request(images, prompts)
        patience = Patience(self._request_timeout_s, self._deadline_s)
        values = np.full(len(images), np.nan, np.float32)
        failures: dict[int, str] = {}
        start = 0
        for items in split(images, prompts, self._limits):
            scores = self._scores(items, patience)
            values[start : start + len(items)] = scores.values
            failures.update({start + i: reason for i, reason in scores.failures.items()})
            start += len(items)
        return Scores(values, failures)

    def _find(self, name: str | None) -> tuple[str, Limits]:
        """The reward's name and the server's limits."""
        patience = Patience(self._request_timeout_s, min(START_S, self._deadline_s))
        reply = self._request("GET", "/v1/rewards", None, patience)
        try:
            answer = RewardsAnswer.model_validate_json(reply.content)
        except ValidationError as error:
            raise HttpRewardError(f"{self.url} is no reward server; its /v1/rewards lists no rewards") from error
        there = [entry.name for entry in answer.rewards]
        if name is None and len(there) == 1:
            (name,) = there
        if name not in there:
            has = f"no reward '{name}'" if name else "several rewards"
            raise HttpRewardError(f"{self.url} has {has}; name one of {', '.join(there)}, as in {self.url}#{there[0]}")
        return name, answer.limits

    def _scores(self, items: list[dict[str, str]], patience: Patience) -> Scores:
        body = json.dumps({"items": items, "rewards": [self.name]}).encode()
        reply = self._request("POST", "/v1/score", body, patience)
        if reply.status != 200:
            logger.warning("%s rejected %d images: %d %s", self.url, len(items), reply.status, reply.detail())
            return all_failed(len(items), "rejected")
        try:
            results = ScoreAnswer.model_validate_json(reply.content).results[self.name]
        except (ValidationError, KeyError):
            results = []
        if len(results) != len(items):
            logger.warning("%s gave an unreadable answer for %d images", self.url, len(items))
            return all_failed(len(items), "unreadable answer")
        values = np.array([np.nan if r.score is None else r.score for r in results], np.float32)
        unsaid = {int(i): "not finite" for i in np.flatnonzero(~np.isfinite(values))}
        return Scores(values, unsaid | {i: r.failure for i, r in enumerate(results) if r.failure is not None})

    def _request(self, method: str, path: str, body: bytes | None, patience: Patience) -> Reply:
        """An answer that would stay the same if it was asked for again."""
        failed: list[str] = []

        def note(state: RetryCallState) -> None:
            assert state.outcome is not None
            failed.append(str(state.outcome.exception()))
            if len(failed) == 1:
                logger.warning("%s gave no answer (%s); asking again", self.url, failed[0])

        try:
            reply = patience.retrying(note)(self._attempt, method, path, body, patience)
        except NoAnswer as error:
            reason = failed[-1] if failed and error.timed_out else error.reason
            raise RewardUnavailable(f"{self.url} gave no answer for {patience.elapsed():.0f} s ({reason})") from error
        if failed:
            logger.warning("%s answers again after %.1f s", self.url, patience.elapsed())
        if reply.status in (401, 403):
            raise HttpRewardError(f"{self.url} does not accept the token in {self._token_variable} ({reply.detail()})")
        return reply

    def _attempt(self, method: str, path: str, body: bytes | None, patience: Patience) -> Reply:
        timeout_s = patience.timeout()
        end = time.monotonic() + timeout_s
        limit = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        headers = {"Content-Type": "application/json"}
        late = f"no answer within {timeout_s:.3g} s"
        try:
            with self._client.stream(method, self.url + path, content=body, headers=headers, timeout=limit) as response:
                content = b""
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > end:  # httpx has a limit for each read only
                        raise NoAnswer(late, timed_out=True)
        except httpx.TimeoutException as error:
            raise NoAnswer(late, timed_out=True) from error
        except httpx.HTTPError as error:
            raise NoAnswer(" ".join(str(error).split()) or type(error).__name__) from error
        reply = Reply(response.status_code, content, _retry_after(response.headers.get("retry-after", "")))
        if reply.status == 429 or reply.status >= 500:
            raise NoAnswer(f"{reply.status} {reply.detail()}", retry_after_s=reply.retry_after_s)
        return reply


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        status: HTTP status.
        content: the body.
        retry_after_s: seconds after which it wants to be asked again, if it said so.
    """

    status: int
    content: bytes
    retry_after_s: float | None

    def detail(self) -> str:
        """What it says about an error, in one line."""
        try:
            words = str(json.loads(self.content)["detail"])
        except (ValueError, KeyError, TypeError):
            words = self.content[:1000].decode("utf-8", "replace")
        return " ".join(words.split())[:200]


def split(images: np.ndarray, prompts: Sequence[str], limits: Limits) -> Iterator[list[dict[str, str]]]:
    """Cut a call into requests that a server accepts, as far as its images are acceptable one by one.

    Args:
        images: uint8 `[N, H, W, 3]`, RGB.
        prompts: N prompts.
        limits: the server's.

    Yields:
        The `items` of a request each, in order.
    """
    items: list[dict[str, str]] = []
    pixels = size = 0
    each = images.shape[1] * images.shape[2]
    for image, prompt in zip(images, prompts, strict=True):
        item = {"image": b64encode(png(image)).decode(), "prompt": prompt}
        # Escaped, a character takes up to 12 bytes.
        needed = len(item["image"]) + len(json.dumps(prompt)) + OVERHEAD_BYTES
        full = len(items) == limits.max_items or pixels + each > limits.max_pixels
        if items and (full or size + needed > limits.max_body_bytes - 1024):
            yield items
            items, pixels, size = [], 0, 0
        items.append(item)
        pixels, size = pixels + each, size + needed
    if items:
        yield items


def _retry_after(value: str) -> float | None:
    """Seconds, from either form of the header."""
    value = value.strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
