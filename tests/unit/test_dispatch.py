"""Who is counted where, while an actor does something that was asked for and the learners go on."""

import asyncio
from types import SimpleNamespace
from typing import Any

from rayjobs.runtime.dispatch import Dispatcher
from rayjobs.runtime.hand_over import HandOver
from rayjobs.runtime.state import Progress, RunState
from rayjobs.runtime.weights import Versions


class Looking:
    """An actor that judges one part after another, when it is let."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[asyncio.Future] = asyncio.Queue()
        self.evaluate = SimpleNamespace(remote=self._evaluate)

    async def _evaluate(self, task: str, version: int, weights: Any) -> str:
        let = asyncio.get_running_loop().create_future()
        await self.calls.put(let)
        await let
        return task.upper()


async def look(state: RunState) -> list[str]:
    hand_over = HandOver(lambda update, slot: slot, 4, 2, 0, 6, 0.5)
    dispatcher = Dispatcher(state, hand_over, Versions(0), lambda summary: None, lambda version: {})
    actor = Looking()
    dispatcher.start({"rollout-0": actor}, [])
    found = asyncio.create_task(dispatcher.ask("evaluate", ["a", "b"], 0, "validating"))
    (await actor.calls.get()).set_result(None)
    last = await actor.calls.get()
    looking = state.progress
    assert (looking.phase, looking.done, looking.total) == ("validating", 1, 2)
    state.progress = Progress("training", 5, 6, {"loss": 0.5})  # an update, made meanwhile
    last.set_result(None)
    result = await found
    assert looking.done == 2
    return result


def test_what_was_asked_for_is_no_update() -> None:
    state = RunState()
    assert asyncio.run(look(state)) == ["A", "B"]
    assert (state.progress.phase, state.progress.done) == ("training", 5)
