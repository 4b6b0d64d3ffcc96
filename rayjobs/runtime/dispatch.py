"""Keeps rollout actors busy: one coroutine an actor takes the next task, waits for it, and brings a dead actor back."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from rayjobs.runtime.experience import RolloutTask, Summary
from rayjobs.runtime.hand_over import HandOver
from rayjobs.runtime.state import BROKEN, FAILED_SHARE, REWARD, Progress, RunState, Stop, last_line
from rayjobs.runtime.weights import Versions
from sharpening.rewards.base import RewardUnavailable
from sharpening.rewards.statistics import Statistics
from sharpening.slots import TooManyFailures

logger = logging.getLogger(__name__)

REVIVE_POLL_S = 0.5  # seconds between two calls to an actor that is being restarted
DEATHS = 3  # answers in a row that say an actor is gone for good, before it is believed


@dataclass
class _Job:
    """A call to a rollout actor: a rollout task, or a part of what was asked for (`future` set), which counts parts."""

    method: str
    task: Any
    version: int
    future: asyncio.Future | None = None
    progress: Progress | None = None


class Dispatcher:
    """Hands tasks to idle actors, in the order that `HandOver` decides.

    A task whose actor died is first in line again; it is made from the same weights and seeds, so whoever makes it
    gets the same result.

    Args:
        state: The run's state.
        hand_over: Decides which rollout task may run.
        versions: Weights by version.
        account: Called with the summary of every rollout that was made.
        statistics: What several rewards are standardised by in rollouts with a version of the weights.
    """

    def __init__(
        self,
        state: RunState,
        hand_over: HandOver,
        versions: Versions,
        account: Callable[[Summary], None],
        statistics: Callable[[int], Statistics],
    ) -> None:
        self._state, self._hand_over, self._versions, self._account = state, hand_over, versions, account
        self._statistics = statistics
        self._asked: list[_Job] = []
        self._workers: set[asyncio.Task] = set()
        self.source: list[Any] = []
        self.actors = 0
        self.open = False  # whether rollouts may begin: pairs may have to be ranked first

    def start(self, actors: dict[str, Any], source: list[Any]) -> None:
        """Put actors to work.

        Args:
            actors: Handles by name.
            source: The training examples, one reference; rollouts bring it along.
        """
        self.source = source
        self.actors = len(actors)
        self._workers = {asyncio.create_task(self._work(name, actor)) for name, actor in actors.items()}

    async def ask(self, method: str, tasks: list[Any], version: int, phase: str) -> list[Any] | Stop:
        """Have idle actors do something before any further rollout.

        Args:
            method: Name of a `RolloutActor` method that takes a task, a version and its weights.
            tasks: One call each.
            version: Weights version.
            phase: What a progress line calls it.

        Returns:
            One result a task, in order; a stop if the run ends before.
        """
        loop = asyncio.get_running_loop()
        progress = Progress(phase, 0, len(tasks), self._state.progress.row)
        jobs = [_Job(method, task, version, loop.create_future(), progress) for task in tasks]
        futures = [job.future for job in jobs if job.future is not None]
        self._state.progress = progress
        self._asked.extend(jobs)
        await self._state.notify()
        async with self._state.changed:
            await self._state.changed.wait_for(
                lambda: self._state.stop is not None or all(future.done() for future in futures)
            )
        return self._state.stop or [future.result() for future in futures]

    async def _work(self, name: str, actor: Any) -> None:
        """Keep one actor busy until the run ends."""
        try:
            while True:
                job = await self._take()
                try:
                    await self._carry_out(job, actor)
                except RayActorError:
                    self._give_back(job)
                    await self._state.notify()
                    if not await self._revive(name, actor):
                        return
        except RayTaskError as error:
            self._refuse(error)
        except Exception as error:
            logger.exception("the coordinator failed")
            self._state.end(BROKEN, f"the coordinator failed: {type(error).__name__}: {error}")
        await self._state.notify()

    async def _take(self) -> _Job:
        """The next thing for an idle actor to do."""
        async with self._state.changed:
            while True:
                if self._asked:
                    return self._asked.pop(0)
                task = None if self._state.stop or not self.open else self._hand_over.take(self._versions.__contains__)
                if task is not None:
                    return _Job("rollout", task, task.version)
                await self._state.changed.wait()

    async def _carry_out(self, job: _Job, actor: Any) -> None:
        """Call the actor, wait, hand the result over."""
        weights = self._versions[job.version] if job.version else None  # version 0 every actor has
        call = getattr(actor, job.method)
        if job.future is not None and job.progress is not None:
            result = await call.remote(job.task, job.version, weights)
            if not job.future.done():
                job.future.set_result(result)
            job.progress.done += 1  # not the run's: an update may have been made meanwhile, and is what it shows
        else:
            asked = (job.task, job.version, weights, self.source, self._statistics(job.version))
            experience, answer = call.options(num_returns=2).remote(*asked)
            summary: Summary = await answer
            self._account(summary)
            for note in summary.notes:
                self._state.say(note, "reward")
            try:
                self._hand_over.deliver(job.task, experience, summary)
            except TooManyFailures as error:
                self._state.end(FAILED_SHARE, str(error))
        await self._state.notify()

    def _give_back(self, job: _Job) -> None:
        """Put a job first in line again."""
        if job.future is not None:
            self._asked.insert(0, job)
        else:
            assert isinstance(job.task, RolloutTask)
            self._hand_over.give_back(job.task)

    async def _revive(self, name: str, actor: Any) -> bool:
        """Wait until a dead actor is back; whether it is."""
        self._state.restarts["rollout"] += 1
        self._state.say(
            f"{name} died; its task goes to the next idle actor, and Ray restarts it", "restart", role="rollout"
        )
        try:
            pid = await _answer(actor)
        except ActorDiedError as error:
            self.actors -= 1
            left = f"the run goes on with {self.actors} of its actors; the node's log says why it died"
            self._state.say(f"{name} does not come back ({last_line(error)}); {left}", "lost", role="rollout")
            if not self.actors:
                self._state.end(BROKEN, f"every rollout actor died: {last_line(error)}")
                await self._state.notify()
            return False
        self._state.say(f"{name} is back as process {pid}", "back", role="rollout")
        return True

    def _refuse(self, error: RayTaskError) -> None:
        """An actor's method raised: the same task would raise again, so the run ends."""
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, RewardUnavailable):
            self._state.end(REWARD, str(cause))
        else:
            logger.error("a rollout actor failed", exc_info=error)
            self._state.end(BROKEN, f"a rollout actor failed: {type(cause).__name__}: {last_line(cause)}")


async def _answer(actor: Any) -> int:
    """Process id of a dead actor once it is back. Ray would retry by itself, with a line in the job's log each time."""
    deaths = 0
    while True:
        try:
            return int((await actor.describe.options(max_task_retries=0).remote())["pid"])
        except ActorUnavailableError:
            deaths = 0
        except ActorDiedError:  # also of a call that was on its way when the actor died again
            deaths += 1
            if deaths == DEATHS:
                raise
        await asyncio.sleep(REVIVE_POLL_S)
