"""Small calls of one process, gathered into requests of a batch: a request costs a replica more than an image does.

The rule is Nagle's (RFC 896), as for small packets: what fills a batch goes at once, and so does what finds little
under way; anything else waits for an answer to come back, and goes with whatever joined it meanwhile. So a lone caller
waits for nobody, and many callers make few requests. Needs no Ray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_servers.answers import readable
from sharpening.rewards.requests import Request, split_scores

GATHERED_BYTES = 1024 * 1024
"""Images of a call that is worth gathering; more of them cost more to copy than a request of their own."""

UNDER_WAY = 2
"""Requests that may be under way when one that fills no batch is sent: one being scored, one on its way there."""


@dataclass(eq=False)
class _Call:
    request: Request
    answer: asyncio.Future[Any]


class Gathering:
    """Asks one reward for all callers of an event loop. Scores do not depend on who else is in a request."""

    def __init__(
        self,
        name: str,
        ask: Callable[[np.ndarray, list[str]], Awaitable[Any]],
        refused: Callable[[BaseException], bool],
        max_images: int = 64,
    ) -> None:
        """Remember whom to ask.

        Args:
            name: of the reward, for the log.
            ask: sends a request, and gives its answer; cancelled when nobody waits for it any more.
            refused: whether an error is the scorer's, about what it was sent: then each call of the request is sent
                again by itself, so that it spoils no other. Any other error is every caller's.
            max_images: images of a request that is put together; a larger call is a request by itself.
        """
        self._name, self._ask, self._refused, self._max_images = name, ask, refused, max_images
        self._waiting: dict[tuple[int, ...], deque[_Call]] = {}  # by size of the images
        self._under_way: set[asyncio.Task[None]] = set()
        self._due = False

    async def score(self, images: np.ndarray, prompts: Sequence[str]) -> Any:
        """Wait for the scores of a call.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            Scores of the N images; "unreadable answer" for all of them if what came back are no scores.

        Raises:
            Exception: what `ask` raised.
        """  # noqa: DOC502
        loop = asyncio.get_running_loop()
        call = _Call((images, prompts), loop.create_future())
        self._waiting.setdefault(images.shape[1:], deque()).append(call)
        self._send_soon(loop)
        return await call.answer

    def _send_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what may go once everybody who is awake has called."""
        if not self._due:
            self._due = True
            loop.call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        for size in list(self._waiting):
            while calls := self._take(self._waiting[size]):
                task = asyncio.create_task(self._request(calls))
                self._under_way.add(task)
                task.add_done_callback(self._ended)
                _end_with_its_callers(task, calls)
            if not self._waiting[size]:
                del self._waiting[size]

    def _take(self, waiting: deque[_Call]) -> list[_Call]:
        """The calls of the next request; none while they wait for others."""
        count = images = 0
        full = False
        for call in waiting:
            if call.answer.cancelled():
                count += 1
                continue
            full = images + len(call.request[0]) > self._max_images and images > 0
            if full:
                break
            images += len(call.request[0])
            count += 1
        full = full or images >= self._max_images
        if not full and len(self._under_way) >= UNDER_WAY:
            return []
        taken = [waiting.popleft() for _ in range(count)]
        return [call for call in taken if not call.answer.cancelled()]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._send_soon(task.get_loop())

    async def _request(self, calls: list[_Call]) -> None:
        """Ask for calls together, and answer each."""
        images = [images for images, _ in (call.request for call in calls)]
        counts = [len(part) for part in images]
        together = images[0] if len(images) == 1 else np.concatenate(images)
        try:
            answer = await self._ask(together, [prompt for call in calls for prompt in call.request[1]])
        except asyncio.CancelledError:
            for call in calls:
                call.answer.cancel()
            raise
        except Exception as error:
            if len(calls) > 1 and self._refused(error):
                await asyncio.gather(*(self._request([call]) for call in calls))
                return
            for call in calls:
                if not call.answer.done():
                    call.answer.set_exception(error)
        else:
            parts = split_scores(readable(answer, sum(counts), self._name), counts)
            for call, scores in zip(calls, parts, strict=True):
                if not call.answer.done():
                    call.answer.set_result(scores)


def _end_with_its_callers(task: asyncio.Task[None], calls: list[_Call]) -> None:
    """Cancel a request that nobody waits for any more."""

    def look(_: asyncio.Future[Any]) -> None:
        if all(call.answer.cancelled() for call in calls):
            task.cancel()

    for call in calls:
        call.answer.add_done_callback(look)
