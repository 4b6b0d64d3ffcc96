"""Which calls of a process share a request, and what becomes of errors and of callers that leave; without Ray."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from reward_servers.gathering import Gathering
from sharpening.rewards import Scores
from sharpening.rewards.base import all_failed
from sharpening.rewards.requests import Request


class Replica:
    """Answers a request with its first pixels, when it is told to; notes what came together."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.free = asyncio.Event()
        self.answer: Callable[[np.ndarray], object] = lambda images: Scores(images[:, 0, 0, 0].astype(np.float32))

    async def ask(self, images: np.ndarray, prompts: list[str]) -> object:
        assert prompts == [str(value) for value in images[:, 0, 0, 0]]
        numbers = [int(value) for value in images[:, 0, 0, 0]]
        self.requests.append(numbers)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled.append(numbers)
            raise
        return self.answer(images)


def call(number: int, count: int = 1, size: int = 2) -> Request:
    return np.full((count, size, size, 3), number, np.uint8), [str(number)] * count


async def send(gathering: Gathering, *calls: Request) -> list[asyncio.Task[Scores]]:
    """Calls that are made one after the other."""
    tasks = []
    for images, prompts in calls:
        tasks.append(asyncio.create_task(gathering.score(images, prompts)))
        await asyncio.sleep(0.01)
    return tasks


def gather(replica: Replica, max_images: int = 4) -> Gathering:
    return Gathering("reward", replica.ask, lambda error: isinstance(error, ValueError), max_images)


def test_a_full_batch_goes_at_once_and_a_part_of_one_waits_while_two_requests_are_under_way() -> None:
    async def play() -> None:
        replica = Replica()
        gathering = gather(replica)
        tasks = await send(gathering, *(call(number) for number in range(8)))
        assert replica.requests == [[0], [1], [2, 3, 4, 5]]
        replica.free.set()
        scores = await asyncio.gather(*tasks)
        assert [list(found.values) for found in scores] == [[number] for number in range(8)]
        assert replica.requests[3:] == [[6, 7]]

    asyncio.run(play())


def test_callers_that_come_together_go_together() -> None:
    async def play() -> None:
        replica = Replica()
        replica.free.set()
        gathering = gather(replica, max_images=64)
        found = await asyncio.gather(*(gathering.score(*call(number, 2)) for number in range(5)))
        assert replica.requests == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]
        assert [list(scores.values) for scores in found] == [[number] * 2 for number in range(5)]

    asyncio.run(play())


@pytest.mark.parametrize(
    ("calls", "requests"),
    [
        ([call(0, 3), call(1, 2), call(2, 1)], [[0] * 3, [1, 1, 2]]),  # no call is divided
        ([call(0, 9), call(1, 1)], [[0] * 9, [1]]),  # a call that is larger than a batch is one by itself
        ([call(0), call(1, 1, size=4), call(2)], [[0, 2], [1]]),  # images of another size are another request
    ],
)
def test_what_shares_a_request(calls: list[Request], requests: list[list[int]]) -> None:
    async def play() -> None:
        replica = Replica()
        gathering = gather(replica)
        tasks = [asyncio.create_task(gathering.score(images, prompts)) for images, prompts in calls]
        await asyncio.sleep(0.01)
        assert replica.requests == requests
        replica.free.set()
        found = await asyncio.gather(*tasks)
        assert [list(scores.values) for scores in found] == [[images[0, 0, 0, 0]] * len(images) for images, _ in calls]

    asyncio.run(play())


def test_what_is_refused_spoils_no_other_call() -> None:
    def answer(images: np.ndarray) -> Scores:
        if (images == 1).any():
            raise ValueError("refused")
        return Scores(images[:, 0, 0, 0].astype(np.float32), {0: "not finite"})

    async def play() -> None:
        replica = Replica()
        replica.answer = answer
        replica.free.set()
        gathering = gather(replica, max_images=64)
        found = await asyncio.gather(*(gathering.score(*call(n, 2)) for n in range(3)), return_exceptions=True)
        assert isinstance(found[1], ValueError)
        assert [list(found[n].values) for n in (0, 2)] == [[0, 0], [2, 2]]
        assert replica.requests == [[0, 0, 1, 1, 2, 2], [0, 0], [1, 1], [2, 2]]

    asyncio.run(play())


def test_any_other_error_is_every_callers_and_the_next_request_goes() -> None:
    def answer(images: np.ndarray) -> Scores:
        if (images == 1).any():
            raise ConnectionError("the replica died")
        return Scores(images[:, 0, 0, 0].astype(np.float32))

    async def play() -> None:
        replica = Replica()
        replica.answer = answer
        replica.free.set()
        gathering = gather(replica)
        found = await asyncio.gather(*(gathering.score(*call(n)) for n in (0, 1)), return_exceptions=True)
        assert [type(error) for error in found] == [ConnectionError] * 2
        assert list((await gathering.score(*call(2))).values) == [2]

    asyncio.run(play())


def test_an_answer_that_is_no_scores_is_that_for_every_call() -> None:
    async def play() -> None:
        replica = Replica()
        replica.answer = lambda images: Scores(np.zeros(1, np.float32))
        replica.free.set()
        gathering = gather(replica)
        found = await asyncio.gather(*(gathering.score(*call(n)) for n in (0, 1)))
        assert [scores.failures for scores in found] == [all_failed(1, "unreadable answer").failures] * 2

    asyncio.run(play())


def test_a_request_is_cancelled_once_nobody_waits_for_it_and_makes_room_for_others() -> None:
    async def play() -> None:
        replica = Replica()
        gathering = gather(replica)
        first = [asyncio.create_task(gathering.score(*call(n))) for n in (0, 1)]
        await asyncio.sleep(0.01)
        (second, third, fourth) = await send(gathering, call(2), call(3), call(4))
        assert replica.requests == [[0, 1], [2]]
        third.cancel()  # before it is sent
        first[0].cancel()
        await asyncio.sleep(0.01)
        assert replica.cancelled == []
        first[1].cancel()
        await asyncio.sleep(0.01)
        assert replica.cancelled == [[0, 1]]
        assert replica.requests[2:] == [[4]]
        replica.free.set()
        assert [list((await task).values) for task in (second, fourth)] == [[2], [4]]

    asyncio.run(play())
