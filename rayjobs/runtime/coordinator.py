"""The coordinator: one small asyncio actor between rollout actors, learner ranks and the driver.

It owns what must outlive a learner's restart: the weights' versions, the metrics, the cost account. `HandOver` says
which task runs when, `Dispatcher` has actors carry it out. It imports no torch and never reads an experience, only
its summary, so it costs a few megabytes and no core. All its methods are coroutines of one event loop: no two of them
run at the same time, and none needs a lock.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rayjobs.runtime.accounts import Accounts
from rayjobs.runtime.counters import RunCounters
from rayjobs.runtime.data_notes import DataNotes
from rayjobs.runtime.dispatch import Dispatcher
from rayjobs.runtime.experience import RoundTask, Share, rollout_row
from rayjobs.runtime.gauges import RunGauges
from rayjobs.runtime.hand_over import HandOver
from rayjobs.runtime.state import BROKEN, DISK, Progress, RunState, Stop
from rayjobs.runtime.weights import Versions
from sharpening.data.bucket_stream import stream_of
from sharpening.data.prompts import Stream
from sharpening.evaluation.events import EventLog
from sharpening.evaluation.run_folder import RunFolder
from sharpening.rewards.mix import Mix
from sharpening.rewards.statistics import Statistics, before

REFRESH_S = 5.0  # Ray exports every 10 seconds what was set since the last time
SUPERSEDED = Stop(BROKEN, "a newer learner group took over")


@dataclass(frozen=True)
class CoordinatorSpec:
    """What a coordinator is told.

    Attributes:
        run: The run's name, a tag of its Prometheus metrics.
        run_folder: Where metrics and costs are written.
        examples: How many training examples there are; `None` while the pairs are still to be ranked.
        run_seed: The run's seed.
        prompts_per_update: Prompts that an update learns from.
        rollout_batch_size: Prompts in a task.
        staleness: Updates that rollouts lag behind.
        updates: Updates in the whole run.
        max_failed_share: Share of an update's prompts that may fail to score.
        mix: How several rewards become one; `None` where there is one.
        watched: Names of the rewards that are only watched.
        buckets: Examples of each bucket of the source; empty where it has none.
    """

    run: str
    run_folder: str
    examples: int | None
    run_seed: int
    prompts_per_update: int
    rollout_batch_size: int
    staleness: int
    updates: int
    max_failed_share: float
    mix: Mix | None = None
    watched: tuple[str, ...] = ()
    buckets: tuple[int, ...] = ()


class Coordinator:
    """See the module.

    Args:
        spec: What it is told.
    """

    def __init__(self, spec: CoordinatorSpec) -> None:
        self._spec = spec
        self._state = RunState(EventLog(Path(spec.run_folder)).add)
        self._versions = Versions(spec.staleness)
        self._stream: Stream | None = None
        folder = RunFolder(Path(spec.run_folder))
        self._counters = RunCounters(spec.run, spec.updates)
        self._accounts = Accounts(folder, self._counters)
        self._hand_over = HandOver(
            self._item, spec.prompts_per_update, spec.rollout_batch_size, spec.staleness, spec.updates,
            spec.max_failed_share,
        )  # fmt: skip
        self._dispatcher = Dispatcher(
            self._state, self._hand_over, self._versions, self._accounts.rollout, self._statistics
        )
        self._metrics = folder.metrics()
        self._gauges = RunGauges(spec.run, spec.mix.names if spec.mix else (), spec.watched)
        self._known: tuple[int, Statistics] | None = None  # the newest version's, which many tasks ask for
        self._shown: dict[str, Any] = {}  # newest numbers of all gauges
        self._refreshed = time.monotonic()
        self._data_notes = DataNotes(spec.updates)
        self._attempt = 0
        self._round: tuple[tuple[int, int], asyncio.Future] | None = None
        self._updates_done = 0
        if spec.examples is not None:
            self._open(spec.examples)
        self._finished_at = time.monotonic()

    def _item(self, update: int, slot: int) -> int:
        """The example of a slot; asked for only once it is known how many there are."""
        assert self._stream is not None
        return self._stream.index(update, slot)

    async def learn_from(self, examples: int) -> None:
        """Let rollouts begin.

        Args:
            examples: How many training examples there are.
        """
        self._open(examples)
        await self._state.notify()

    def _open(self, examples: int) -> None:
        spec = self._spec
        self._stream = stream_of(examples, spec.buckets, spec.run_seed, spec.prompts_per_update)
        self._dispatcher.open = True

    async def start(self, actors: dict[str, Any], source: list[Any], fresh: bool) -> None:
        """Put the rollout actors to work.

        Args:
            actors: Actor handles by name.
            source: The training examples, one reference; actors read it themselves.
            fresh: Whether the run starts at update 0: then rollouts need not wait for the learner, because every
                actor has version 0, the pretrained model, loaded.
        """
        if fresh and self._versions.newest < 0:
            self._versions.publish(0, None)
        self._dispatcher.start(actors, source)
        await self._state.notify()

    # -- learner ranks -------------------------------------------------------------------------------------------

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
            self._state.restarts["learner"] += 1
            again = f"; {self._updates_done - version} updates are made again" if self._updates_done > version else ""
            said = f"the learner group lost a rank and was restarted at update {version}{again}"
            self._state.say(said, "restart", role="learner", update=version)
        elif version:
            self._state.say(f"resumed at update {version}", "resume", update=version)
        self._updates_done = version
        base: dict[int, Any] = {0: None} if version <= self._spec.staleness else {}
        for number, buffer in sorted((base | weights).items()):
            self._versions.publish(number, None if buffer is None else ray.put(buffer))
        self._hand_over.begin(version, self._attempt)
        if [row["update"] for row in self._metrics.rows] != [row["update"] for row in rows]:
            self._guard(lambda: self._metrics.rewrite(rows))
        self._data_notes.begin(rows)
        self._known = None
        self._finished_at = time.monotonic()
        await self._state.notify()
        return self._attempt, self._state.stop

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
        async with self._state.changed:
            while True:
                if attempt != self._attempt:
                    return SUPERSEDED
                shares = self._hand_over.shares(update, rank, world)
                if shares is not None:
                    return shares
                if self._state.stop:
                    return self._state.stop
                await self._state.changed.wait()

    async def lost(self, attempt: int, update: int, experiences: list[Any]) -> None:
        """A learner rank could not fetch experiences of an update: the node that kept them is gone.

        Args:
            attempt: From `begin`.
            update: 0-based update.
            experiences: References, in a list so that Ray does not look for them.
        """
        if attempt != self._attempt:
            return
        again = self._hand_over.lose(update, experiences)
        if again:
            tasks = "1 task" if again == 1 else f"{again} tasks"
            self._state.say(f"update {update}: the experience of {tasks} was lost with its node and is made again")
            await self._state.notify()

    async def begin_round(self, attempt: int, update: int, slots: tuple[int, ...], state: bytes) -> bytes | Stop:
        """Have an actor make the state that a method goes on with; asked for by every rank, made once.

        Args:
            attempt: From `begin`.
            update: 0-based update that the round begins with.
            slots: Counters of its examples.
            state: The method's state before.

        Returns:
            The state.
        """
        if attempt != self._attempt:
            return SUPERSEDED
        if self._round is None or self._round[0] != (attempt, update):
            task = asyncio.ensure_future(self._make_round(update, slots, state))
            self._round = ((attempt, update), task)
        return await self._round[1]

    async def _make_round(self, update: int, slots: tuple[int, ...], state: bytes) -> bytes | Stop:
        items = tuple(self._item(update, slot) for slot in slots)
        statistics = self._statistics(self._versions.newest)
        task = RoundTask(update, slots, items, self._dispatcher.source, state, statistics)
        found = await self._dispatcher.ask("begin_round", [task], self._versions.newest, "beginning a round")
        if isinstance(found, Stop):
            return found
        made = found[0]
        self._accounts.round(made)
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in made.metrics.items())
        self._state.say(f"update {update} begins a round: {told}", "round", update=update)
        return made.state

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
            return SUPERSEDED
        summaries = self._hand_over.summaries(update)
        now = time.monotonic()
        seconds, self._finished_at = now - self._finished_at, now
        rollout = rollout_row(summaries, self._dispatcher.actors)
        self._versions.publish(update + 1, ray.put(weights))
        self._hand_over.consume(update)
        self._updates_done = update + 1
        merged = {
            # What both tell (the reward and its spread) is taken from the rollouts: one sum, whatever the ranks.
            "update": update, "version": self._hand_over.version_for(update), **row, **rollout, "seconds": seconds,
            "updates_per_second": 1 / seconds, "images_per_second": rollout["images_scored"] / seconds,
            "restarts_rollout": self._state.restarts["rollout"], "restarts_learner": self._state.restarts["learner"],
        }  # fmt: skip
        level = self._spec.mix.level(merged, (self._metrics.rows or [merged])[0]) if self._spec.mix else None
        merged |= {} if level is None else {"reward_level": level}
        self._accounts.learner(row)
        written = self._guard(lambda: self._metrics.append(merged)) and self._guard(self._accounts.write)
        self._show(merged)
        self._counters.update(merged)
        self._state.progress = Progress("training", update + 1, self._spec.updates, merged)
        if said := self._data_notes.after(merged):
            self._state.say(said, "data", update=update)
        self._tell_dropped(update, [entry for summary in summaries for entry in summary.dropped])
        await self._state.notify()
        return None if written else self._state.stop

    def _tell_dropped(self, update: int, dropped: list[tuple[int, str]]) -> None:
        """One line an update, however many prompts it lost."""
        if not dropped:
            return
        told = ", ".join(f"slot {slot}: {reason}" for slot, reason in dropped)
        self._state.say(
            f"update {update}: {len(dropped)} prompts could not be scored ({told}) and were replaced; if it goes on, "
            "the reward's log says why (dashboard: Serve)",
            "dropped", update=update, reasons=dict(Counter(reason for _, reason in dropped)),
        )  # fmt: skip

    async def rows(self, since: int = 0) -> list[dict]:
        """Metrics of the updates made so far.

        Args:
            since: 0-based update to begin with.

        Returns:
            One row an update, in order.
        """
        return self._metrics.rows[since:]

    # -- driver --------------------------------------------------------------------------------------------------

    async def ask(self, method: str, tasks: list[Any], version: int | None, phase: str) -> list[Any] | Stop:
        """Have idle rollout actors do something before any further rollout.

        Args:
            method: Name of a `RolloutActor` method that takes a task, a version and its weights.
            tasks: One call each.
            version: Weights version; `None` for the newest.
            phase: What a progress line calls it.

        Returns:
            One result a task, in order; a stop if the run ends before.
        """
        found = await self._dispatcher.ask(method, tasks, self._versions.newest if version is None else version, phase)
        if not isinstance(found, Stop):
            self._counters.asked(method, found)
        return found

    async def stop(self, kind: str, reason: str) -> None:
        """End the run: no further update will complete. The first reason counts.

        Args:
            kind: A kind of `rayjobs.runtime.state`.
            reason: One sentence for the user.
        """
        self._state.end(kind, reason)
        await self._state.notify()

    async def note(self, event: str, kind: str = "reward") -> None:
        """Something that the run's log should tell.

        Args:
            event: One sentence.
            kind: What it is about: the reward's replicas, unless it says otherwise.
        """
        self._state.say(event, kind)

    async def show(self, numbers: dict[str, Any]) -> None:
        """Numbers for the run's gauges that no update brings.

        Args:
            numbers: By the gauge's name.
        """
        self._show(numbers)

    def _show(self, numbers: dict[str, Any]) -> None:
        self._shown |= numbers
        self._gauges.set(self._shown)

    def _refresh(self) -> None:
        """Show the queue, and every few seconds all gauges again: Ray drops a gauge that is not set anew."""
        self._counters.queue(self._hand_over.depth())
        if time.monotonic() - self._refreshed > REFRESH_S:
            self._refreshed = time.monotonic()
            self._gauges.set(self._shown)
            self._counters.refresh()

    async def status(self, events_seen: int = 0) -> dict[str, Any]:
        """What the driver shows.

        Args:
            events_seen: Events that the caller has already.

        Returns:
            `events` (new ones), `phase`, `done`, `total`, `row` (newest metrics), `stop`, `updates_done`, `attempt`,
            `pid`.
        """
        progress = self._state.progress
        self._refresh()
        return {
            "events": self._state.events[events_seen:], "phase": progress.phase, "done": progress.done,
            "total": progress.total, "row": progress.row, "stop": self._state.stop,
            "updates_done": self._updates_done, "attempt": self._attempt, "pid": os.getpid(),
        }  # fmt: skip

    # -- records -------------------------------------------------------------------------------------------------

    def _statistics(self, version: int) -> Statistics:
        """What several rewards are standardised by in rollouts with a version: the updates before it, from their rows.

        A version is published in the same breath as its update's row is written, so those rows are there.
        """
        if self._spec.mix is None:
            return {}
        if self._known is None or self._known[0] != version:
            self._known = (version, before(self._metrics.rows, version, self._spec.mix.names))
        return self._known[1]

    def _guard(self, write: Callable[[], None]) -> bool:
        """Write to the run folder; a disk that refuses ends the run."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self._state.end(DISK, f"metrics could not be written to {self._spec.run_folder}: {reason}")
            return False
        return True
