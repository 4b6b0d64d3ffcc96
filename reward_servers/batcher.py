"""Dynamic batching: one thread scores, and takes what has arrived the moment it is free."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharpening.rewards import Scores
from sharpening.rewards.requests import Request

Answer = Scores | Exception
"""Scores of a request, or what the scorer raised for it."""


@dataclass(eq=False)
class _Waiting:
    request: Request
    arrived: float
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Answer]


class Batcher:
    """Requests in order of arrival, handed to the scorer in batches.

    A batch is put together only when the scorer is free to take it, so while it is busy everything that arrives may
    join, and under load nobody waits for a timer. (`serve.batch` closes a batch some milliseconds after its first
    request, whether or not the scorer is free to take it: with 256 callers, one image each, it scored 5 together, and
    this 57.) Batches are limited in images, because that is what they cost, and in requests; what does not fit is first
    in the next one.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Request]], Sequence[Answer]],
        max_requests: int = 64,
        max_images: int = 64,
        wait_s: float = 0.005,
    ) -> None:
        """Start the thread.

        Args:
            score: answers each of several requests; runs in the thread.
            max_requests: requests of a batch at most.
            max_images: images of a batch at most; a larger request is a batch by itself.
            wait_s: seconds that the first request of a batch waits for others while the scorer is idle.
        """
        self._score = score
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.limit(max_requests, max_images, wait_s)
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._thread.start()

    def limit(self, max_requests: int, max_images: int, wait_s: float) -> None:
        """Change the limits, from the next batch on.

        Args:
            max_requests: requests of a batch at most.
            max_images: images of a batch at most.
            wait_s: seconds that the first request of a batch waits for others.
        """
        self._max_requests, self._max_images, self._wait_s = max_requests, max_images, wait_s

    async def submit(self, request: Request) -> Scores:
        """Wait for a request's scores. A caller that is cancelled takes its request out of the queue.

        Args:
            request: a checked request.

        Returns:
            Its scores.

        Raises:
            Exception: what the scorer raised for it.
        """  # noqa: DOC502
        loop = asyncio.get_running_loop()
        item = _Waiting(request, time.monotonic(), loop, loop.create_future())
        with self._changed:
            self._waiting.append(item)
            self._changed.notify()
        answer = await item.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def alive(self) -> bool:
        """Whether the thread still takes requests."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread after the batch it is scoring; requests that wait are never answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._take():
            try:
                answers = self._score([item.request for item in batch])
            except Exception as error:  # it belongs to the batch, and the thread must live on
                answers = [error] * len(batch)
            for item, answer in zip(batch, answers, strict=True):
                item.loop.call_soon_threadsafe(_deliver, item.answer, answer)

    def _take(self) -> list[_Waiting]:
        """The next batch, as soon as there is one; empty when the batcher was closed."""
        with self._changed:
            while not self._closed:
                self._drop_cancelled()
                if self._waiting:
                    rest = self._waiting[0].arrived + self._wait_s - time.monotonic()
                    count = self._fitting()
                    # Fewer than all: the next one does not fit, so waiting brings nothing.
                    if rest <= 0 or count < len(self._waiting) or self._is_full(count):
                        return [self._waiting.popleft() for _ in range(count)]
                    self._changed.wait(rest)
                else:
                    self._changed.wait()
        return []

    def _drop_cancelled(self) -> None:
        if any(item.answer.cancelled() for item in self._waiting):
            self._waiting = deque(item for item in self._waiting if not item.answer.cancelled())

    def _fitting(self) -> int:
        """How many of the waiting requests make the next batch; at least one."""
        count = images = 0
        for item in self._waiting:
            images += len(item.request[0])
            if count and (count == self._max_requests or images > self._max_images):
                break
            count += 1
        return count

    def _is_full(self, count: int) -> bool:
        images = sum(len(self._waiting[i].request[0]) for i in range(count))
        return count >= self._max_requests or images >= self._max_images


def _deliver(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)
