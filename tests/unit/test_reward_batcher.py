"""What is scored together, and in what order; without Ray and without a model."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from reward_servers.batcher import Batcher
from sharpening.rewards import Scores
from sharpening.rewards.requests import Request


class Recorder:
    """Scores a request by its first pixel, notes what came together, and may be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()

    def __call__(self, requests: Sequence[Request]) -> list[Scores | Exception]:
        self.busy.set()
        assert self.free.wait(30)
        self.batches.append([int(images[0, 0, 0, 0]) for images, _ in requests])
        return [
            ValueError("refused") if images[0, 0, 0, 0] == 99 else Scores(images[:, 0, 0, 0].astype(np.float32))
            for images, _ in requests
        ]


def request(number: int, count: int = 1) -> Request:
    images = np.full((count, 2, 2, 3), number, np.uint8)
    return images, [""] * count


async def while_busy(recorder: Recorder, batcher: Batcher, send: Callable[[], list[asyncio.Task[Scores]]]) -> None:
    """Send requests while a first one, 0, is being scored, then let the scorer go on."""
    recorder.free.clear()
    first = asyncio.create_task(batcher.submit(request(0)))
    assert await asyncio.to_thread(recorder.busy.wait, 30)
    tasks = send()
    await asyncio.sleep(0.05)
    recorder.free.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)


def submit(batcher: Batcher, *requests: Request) -> list[asyncio.Task[Scores]]:
    return [asyncio.create_task(batcher.submit(r)) for r in requests]


@pytest.mark.parametrize(
    ("limits", "counts", "batches"),
    [
        ((64, 64), [1, 1, 1, 1, 1], [[1, 2, 3, 4, 5]]),
        ((2, 64), [1, 1, 1, 1, 1], [[1, 2], [3, 4], [5]]),
        ((64, 6), [3, 3, 3, 4], [[1, 2], [3], [4]]),  # in order, although 3 and 4 would not fill
        ((64, 6), [1, 40, 1, 1], [[1], [2], [3, 4]]),  # what is larger than a batch is one by itself
    ],
)
def test_what_arrives_while_the_scorer_is_busy_is_scored_together_within_limits(
    limits: tuple[int, int], counts: list[int], batches: list[list[int]]
) -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, max_requests=limits[0], max_images=limits[1], wait_s=0.0)
    requests = [request(i + 1, count) for i, count in enumerate(counts)]
    asyncio.run(while_busy(recorder, batcher, lambda: submit(batcher, *requests)))
    assert recorder.batches == [[0], *batches]
    batcher.close()


def test_an_idle_scorer_waits_for_more_but_not_longer_than_for_a_full_batch() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=4, wait_s=60.0)

    async def two_halves() -> list[Scores]:
        first = submit(batcher, request(1, 2))
        await asyncio.sleep(0.05)
        assert not first[0].done()
        return await asyncio.gather(*first, *submit(batcher, request(2, 2)))

    answers = asyncio.run(asyncio.wait_for(two_halves(), 30))
    assert [list(answer.values) for answer in answers] == [[1, 1], [2, 2]]
    assert recorder.batches == [[1, 2]]
    batcher.close()


def test_an_error_belongs_to_its_request_and_one_of_all_to_everybody() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, wait_s=0.0)

    async def ask(*requests: Request) -> list[Scores | BaseException]:
        return await asyncio.gather(*submit(batcher, *requests), return_exceptions=True)

    good, refused = asyncio.run(ask(request(1), request(99)))
    assert isinstance(good, Scores)
    assert isinstance(refused, ValueError)
    batcher._score = lambda requests: 1 / 0  # type: ignore[assignment,return-value]
    answers = asyncio.run(ask(request(1), request(2)))
    assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2
    assert batcher.alive()
    batcher.close()


def test_a_request_whose_caller_is_gone_is_not_scored() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, wait_s=0.0)

    def send_and_cancel() -> list[asyncio.Task[Scores]]:
        tasks = submit(batcher, request(1), request(2), request(3))
        asyncio.get_running_loop().call_later(0.01, tasks[1].cancel)
        return tasks

    asyncio.run(while_busy(recorder, batcher, send_and_cancel))
    assert recorder.batches == [[0], [1, 3]]
    batcher.close()
    batcher._thread.join(30)
    assert not batcher.alive()
