"""The coordinator: one small asyncio actor between rollout actors, learner ranks and the driver.

It owns what must outlive a learner's restart (the weights' versions, the metrics) and decides nothing by itself:
`HandOver` says which task runs when, this file carries it out with Ray. It imports no torch and never reads an
experience, only its summary, so it costs a few megabytes and no core.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from rayjobs.runtime.experience import HandOver, RolloutTask, Share, Summary, TooManyFailures, rollout_row
from rayjobs.runtime.gauges import RunGauges
from rayjobs.runtime.weights import Versions
from sharpening.data.prompts import PromptStream
from sharpening.evaluation.run_folder import RunFolder
from sharpening.rewards.base import RewardUnavailable

logger = logging.getLogger(__name__)

REWARD, FAILED_SHARE, NOT_FINITE, DISK, INTERRUPTED, BROKEN = (
    "reward", "failed share", "not finite", "disk", "interrupted", "broken",
)  # fmt: skip
SOUND = (REWARD, FAILED_SHARE, INTERRUPTED)  # after these the learner's weights are good, so it checkpoints them


@dataclass(frozen=True)
class Stop:
    """Why the run must end early.

    Attributes:
        kind: One of the kinds above.
        reason: One sentence for the user.
    """

    kind: str
    reason: str


@dataclass(frozen=True)
class CoordinatorSpec:
    """What a coordinator is told.

    Attributes:
        run: The run's name, a tag of its Prometheus metrics.
        run_folder: Where `metrics.jsonl` is written.
        prompts: Training prompts.
        run_seed: The run's seed.
        prompts_per_update: Prompts that an update learns from.
        rollout_batch_size: Prompts in a task.
        staleness: Updates that rollouts lag behind.
        updates: Updates in the whole run.
        max_failed_share: Share of an update's prompts that may fail to score.
    """

    run: str
    run_folder: str
    prompts: list[str]
    run_seed: int
    prompts_per_update: int
    rollout_batch_size: int
    staleness: int
    updates: int
    max_failed_share: float


@dataclass
class _Job:
    """A call to a rollout actor: a rollout task, or one that the driver asked for (`future` set)."""

    method: str
    task: Any
    version: int
    future: asyncio.Future | None = None


@dataclass
class _Progress:
    """What a progress line shows."""

    phase: str = "starting"
    done: int = 0
    total: int = 0
    row: dict[str, Any] = field(default_factory=dict)


class Coordinator:
    """See the module. All methods are coroutines of one event loop: no two of them run at the same time.

    Args:
        spec: What it is told.
    """

    def __init__(self, spec: CoordinatorSpec) -> None:
        prompt = PromptStream(spec.prompts, spec.run_seed, spec.prompts_per_update).prompt
        self._spec = spec
        self._hand_over = HandOver(
            prompt, spec.prompts_per_update, spec.rollout_batch_size, spec.staleness, spec.updates,
            spec.max_failed_share,
        )  # fmt: skip
        self._versions = Versions(spec.staleness)
        self._folder = RunFolder(Path(spec.run_folder))
        self._metrics = self._folder.metrics()
        self._cost = self._folder.read_cost()
        self._gauges = RunGauges(spec.run)
        self._asked: list[_Job] = []
        self._workers: list[asyncio.Task] = []
        self._changed = asyncio.Condition()
        self._stop: Stop | None = None
        self._attempt = 0
        self._restarts = {"rollout": 0, "learner": 0}
        self._updates_done = 0
        self._progress = _Progress()
        self._events: list[str] = []
        self._finished_at = time.monotonic()

    async def start(self, actors: dict[str, Any], fresh: bool) -> int:
        """Give it the rollout actors.

        Args:
            actors: Actor handles by name.
            fresh: Whether the run starts at update 0: then rollouts need not wait for the learner, because every
                actor has version 0, the pretrained model, loaded.

        Returns:
            Its process id.
        """
        if fresh:
            self._versions.publish(0, None)
        self._workers = [asyncio.create_task(self._work(name, actor)) for name, actor in actors.items()]
        return os.getpid()

    # -- learner ranks ------------------------------------------------------------------------------------------

    async def begin(self, version: int, weights: dict[int, np.ndarray], rows: list[dict]) -> tuple[int, Stop | None]:
        """A learner group starts (again), at a checkpoint or at the pretrained model. Called by rank 0.

        Args:
            version: Updates that its weights have had.
            weights: Packed weights by version: that one, and the older ones that stale rollouts need.
            rows: Metrics of the updates before `version`, from the checkpoint; later ones are forgotten.

        Returns:
            The attempt's number, and why it need not go on.
        """
        self._attempt += 1
        if self._attempt > 1:
            self._restarts["learner"] += 1
            self._say(
                f"the learner group died and was restarted from update {version}; "
                f"updates {version} to {self._updates_done} are made again"
            )
        elif version:
            self._say(f"resumed at update {version}")
        self._updates_done = version
        for number in sorted({0: None, **weights} if version <= self._spec.staleness else weights):
            buffer = weights.get(number)
            self._versions.publish(number, None if buffer is None else ray.put(buffer))
        self._hand_over.begin(version, self._attempt)
        self._guard(lambda: self._metrics.rewrite(rows))
        self._finished_at = time.monotonic()
        await self._notify()
        return self._attempt, self._stop

    async def next(self, attempt: int, update: int, rank: int, world: int) -> list[Share] | Stop:
        """A learner rank's experience of an update; waits until it is complete.

        Args:
            attempt: From `begin`.
            update: 0-based update.
            rank: The learner's rank.
            world: Number of ranks.

        Returns:
            Its shares in task order; the same answer (shares or stop) reaches every rank, because a complete update
            is handed out even when a stop came in between, and none completes after a stop.
        """
        async with self._changed:
            while True:
                if attempt != self._attempt:
                    return Stop(BROKEN, "a newer learner group took over")
                shares = self._hand_over.shares(update, rank, world)
                if shares is not None:
                    return shares
                if self._stop:
                    return self._stop
                await self._changed.wait()

    async def finish(self, attempt: int, update: int, row: dict[str, Any], weights: np.ndarray) -> Stop | None:
        """An update was made: record it and publish its weights. Called by rank 0.

        Args:
            attempt: From `begin`.
            update: 0-based update.
            row: The learner's metrics of it.
            weights: Packed weights, version `update + 1`.

        Returns:
            A stop, when its metrics could not be written or the group was superseded.
        """
        if attempt != self._attempt:
            return Stop(BROKEN, "a newer learner group took over")
        summaries = self._hand_over.summaries(update)
        now = time.monotonic()
        seconds, self._finished_at = now - self._finished_at, now
        rollout = rollout_row(summaries, len(self._workers))
        self._versions.publish(update + 1, ray.put(weights))
        self._hand_over.consume(update)
        self._updates_done = update + 1
        merged = {
            "update": update, "version": self._hand_over.version_for(update), **rollout, **row, "seconds": seconds,
            "updates_per_second": 1 / seconds, "images_per_second": rollout["images_scored"] / seconds,
            "restarts_rollout": self._restarts["rollout"], "restarts_learner": self._restarts["learner"],
        }  # fmt: skip
        self._account_learner(row)
        written = self._guard(lambda: self._metrics.append(merged)) and self._guard(self._write_cost)
        self._gauges.set(merged)
        self._progress = _Progress("training", update + 1, self._spec.updates, merged)
        for slot, reason in [entry for summary in summaries for entry in summary.dropped]:
            self._say(f"update {update}: slot {slot} was dropped ({reason}) and refilled")
        await self._notify()
        return None if written else self._stop

    async def rows(self) -> list[dict]:
        """Metrics of all updates made so far, one row an update."""
        return self._metrics.rows

    # -- driver -------------------------------------------------------------------------------------------------

    async def ask(self, method: str, tasks: list[Any], version: int | None = None, phase: str = "") -> list[Any] | Stop:
        """Have idle rollout actors do something else than rollouts, before these; dead actors' tasks are repeated.

        Args:
            method: Name of a `RolloutActor` method that takes a task, a version and its weights.
            tasks: One call each.
            version: Weights version; the newest by default.
            phase: What a progress line calls it.

        Returns:
            One result a task, in order; a stop if the run ends before.
        """
        version = self._versions.newest if version is None else version
        loop = asyncio.get_running_loop()
        jobs = [_Job(method, task, version, loop.create_future()) for task in tasks]
        if phase:
            self._progress = _Progress(phase, 0, len(tasks), self._progress.row)
        self._asked.extend(jobs)
        await self._notify()
        results = []
        for job in jobs:
            while not job.future.done():  # type: ignore[union-attr]
                if self._stop:
                    return self._stop
                await asyncio.wait([job.future], timeout=1)  # type: ignore[list-item]
            results.append(job.future.result())  # type: ignore[union-attr]
        return results

    async def stop(self, kind: str, reason: str) -> None:
        """End the run: no further update will complete. The first reason counts.

        Args:
            kind: One of this module's kinds.
            reason: One sentence for the user.
        """
        if self._stop is None:
            self._stop = Stop(kind, reason)
            self._say(f"stopping: {reason}")
        await self._notify()

    async def status(self, events_seen: int = 0) -> dict[str, Any]:
        """What the driver shows.

        Args:
            events_seen: Events that the caller has already.

        Returns:
            `events` (new ones), `phase`, `done`, `total`, `row` (newest metrics), `stop`, `updates_done`,
            `attempt`, `restarts`, `version`.
        """
        return {
            "events": self._events[events_seen:], "phase": self._progress.phase, "done": self._progress.done,
            "total": self._progress.total, "row": self._progress.row, "stop": self._stop,
            "updates_done": self._updates_done, "attempt": self._attempt, "restarts": dict(self._restarts),
            "version": self._versions.newest,
        }  # fmt: skip

    # -- rollout actors -----------------------------------------------------------------------------------------

    async def _work(self, name: str, actor: Any) -> None:
        """Keep one rollout actor busy until the run ends; bring it back when it died."""
        while True:
            job = await self._take()
            weights = self._versions[job.version] if job.version else None  # version 0 every actor has
            call = getattr(actor, job.method)
            try:
                if job.future is None:
                    experience, summary = call.options(num_returns=2).remote(job.task, job.version, weights)
                    await self._deliver(job, experience, await summary)
                else:
                    job.future.set_result(await call.remote(job.task, job.version, weights))
                    self._progress.done += 1
            except RayActorError:
                await self._give_back(job)
                if not await self._revive(name, actor):
                    return
            except RayTaskError as error:
                await self._refuse(error)
                await self._give_back(job)
                return
            except Exception as error:
                await self.stop(BROKEN, f"the coordinator failed: {type(error).__name__}: {error}")
                raise

    async def _take(self) -> _Job:
        """The next thing for an idle actor to do."""
        async with self._changed:
            while True:
                if self._asked:
                    return self._asked.pop(0)
                task = None if self._stop else self._hand_over.take(self._versions.__contains__)
                if task is not None:
                    return _Job("rollout", task, task.version)
                await self._changed.wait()

    async def _deliver(self, job: _Job, experience: Any, summary: Summary) -> None:
        """Hand a rollout over."""
        self._account_rollout(summary)
        try:
            self._hand_over.deliver(job.task, experience, summary)
        except TooManyFailures as error:
            await self.stop(FAILED_SHARE, str(error))
        await self._notify()

    async def _give_back(self, job: _Job) -> None:
        """Put a job first in line again."""
        if job.future is not None:
            self._asked.insert(0, job)
        else:
            assert isinstance(job.task, RolloutTask)
            self._hand_over.give_back(job.task)
        await self._notify()

    async def _revive(self, name: str, actor: Any) -> bool:
        """Wait until a dead actor is back; whether it is."""
        self._restarts["rollout"] += 1
        self._say(f"{name} died; its task goes to the next idle actor, and Ray restarts it")
        try:
            # Ray itself retries this call until the restarted process answers.
            await actor.describe.options(max_task_retries=-1).remote()
        except ActorDiedError:
            self._say(f"{name} died too often and is given up")
            self._workers = [task for task in self._workers if task is not asyncio.current_task()]
            if not self._workers:
                await self.stop(BROKEN, "every rollout actor died; see its log in the Ray dashboard")
            return False
        except RayTaskError as error:
            await self._refuse(error)
            return False
        self._say(f"{name} is back")
        return True

    async def _refuse(self, error: RayTaskError) -> None:
        """A rollout actor's method raised: the same task would raise again, so the run ends."""
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, RewardUnavailable):
            await self.stop(REWARD, f"the reward stayed down: {cause}")
        else:
            logger.error("a rollout actor failed", exc_info=error)
            await self.stop(BROKEN, f"a rollout actor failed: {type(cause).__name__}: {first_line(cause)}")

    # -- helpers ------------------------------------------------------------------------------------------------

    def _guard(self, write: Callable[[], None]) -> bool:
        """Write to the run folder; a disk that refuses stops the run."""
        try:
            write()
        except OSError as error:
            if self._stop is None:
                reason = error.strerror or str(error)
                self._stop = Stop(DISK, f"metrics could not be written to {self._spec.run_folder}: {reason}")
            return False
        return True

    def _account_rollout(self, summary: Summary) -> None:
        """Count what a rollout cost, also one that comes too late to be learnt from."""
        for stage, evaluations in summary.nfe.items():
            self._cost.add_nfe(stage, evaluations)
        self._cost.add_seconds(summary.seconds)
        self._cost.add_images(summary.images_scored)
        self._cost.note_memory("rollout", summary.peak_memory)
        if summary.peak_gpu_memory:
            self._cost.note_memory("rollout_gpu", summary.peak_gpu_memory)

    def _account_learner(self, row: dict[str, Any]) -> None:
        """Count what an update cost the learner."""
        self._cost.add_nfe("learn", int(row.get("nfe_learn", 0)))
        self._cost.add_seconds({stage: row.get(f"seconds_{stage}", 0.0) for stage in ("wait", "learn", "publish")})
        for role in ("learner", "learner_gpu"):
            if f"peak_memory_{role}" in row:
                self._cost.note_memory(role, row[f"peak_memory_{role}"])

    def _write_cost(self) -> None:
        self._folder.write_cost(self._cost)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _say(self, text: str) -> None:
        """Note an event for the driver's log, and in this actor's own."""
        logger.warning(text)
        self._events.append(text)


def first_line(error: BaseException) -> str:
    """An exception's message, cut to its first line.

    Args:
        error: The exception.

    Returns:
        One line.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
