"""The bounded, ordered hand-over of experience from rollout actors to learner ranks, as plain bookkeeping.

No Ray and no torch here: the coordinator asks what may be rolled out now, reports what came back, and reads what is
complete. Order and content depend on counters alone, never on which actor was faster.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from rayjobs.runtime.experience import RolloutTask, Share, Summary
from sharpening.slots import check_failures, refill_slots, slots_of_update, tasks


@dataclass
class _Update:
    """What is known about one update's rollouts."""

    version: int
    attempt: int
    waiting: list[RolloutTask] = field(default_factory=list)  # not dispatched, in order
    running: set[RolloutTask] = field(default_factory=set)
    results: dict[int, tuple[Any, Summary]] = field(default_factory=dict)
    made: dict[int, RolloutTask] = field(default_factory=dict)  # the tasks of the results
    slots: int = 0  # handed out so far
    tasks: int = 0
    complete: bool = False


@dataclass(frozen=True)
class Depth:
    """How many rollout tasks are in which state.

    Attributes:
        waiting: Cut, and not yet with an actor.
        running: With an actor.
        done: Made, and not yet learnt from.
    """

    waiting: int
    running: int
    done: int


class HandOver:
    """Decides which tasks run when, and which groups each learner rank gets.

    Args:
        item: (update, slot) -> place of the training example in its source.
        prompts_per_update: Prompts that an update learns from.
        rollout_batch_size: Prompts in a task.
        staleness: Update `u` is rolled out with version `max(0, u - staleness)`, no other.
        updates: Updates in the whole run.
        max_failed_share: Share of the prompts tried in an update that may be dropped.
    """

    def __init__(
        self,
        item: Callable[[int, int], int],
        prompts_per_update: int,
        rollout_batch_size: int,
        staleness: int,
        updates: int,
        max_failed_share: float,
    ) -> None:
        self._item = item
        self._prompts_per_update = prompts_per_update
        self._rollout_batch_size = rollout_batch_size
        self._staleness = staleness
        self._updates = updates
        self._max_failed_share = max_failed_share
        self._open: dict[int, _Update] = {}
        self._attempt = 0
        self._next = 0  # the update that is learnt next

    def begin(self, version: int, attempt: int) -> None:
        """A learner group starts at `version`: forget what was rolled out with later weights.

        Args:
            version: Updates that the learner has applied; it asks for update `version` next.
            attempt: Number of this start.
        """
        self._attempt, self._next = attempt, version
        for update in [u for u, state in self._open.items() if u < version or state.version > version]:
            del self._open[update]

    def version_for(self, update: int) -> int:
        """Weights version that rolls an update out.

        Args:
            update: 0-based update.

        Returns:
            The version, exactly, so that overlapped runs are as reproducible as synchronous ones.
        """
        return max(0, update - self._staleness)

    def take(self, has_version: Callable[[int], bool]) -> RolloutTask | None:
        """The next task that may run, in order of updates.

        Args:
            has_version: Whether a weights version is at hand.

        Returns:
            A task, now counted as running; `None` while there is nothing to do. Never looks more than `staleness`
            updates ahead.
        """
        for update in range(self._next, min(self._next + self._staleness + 1, self._updates)):
            version = self.version_for(update)
            if update not in self._open:
                if not has_version(version):
                    return None
                self._open[update] = _Update(version, self._attempt)
                self._add_tasks(update, slots_of_update(self._prompts_per_update))
            state = self._open[update]
            if state.waiting and has_version(version):
                task = state.waiting.pop(0)
                state.running.add(task)
                return task
        return None

    def give_back(self, task: RolloutTask) -> None:
        """A task came to nothing (its actor died): it is first in line again.

        Args:
            task: From `take`.
        """
        state = self._open.get(task.update)
        if state and task in state.running:
            state.running.remove(task)
            state.waiting.insert(0, task)

    def deliver(self, task: RolloutTask, experience: Any, summary: Summary) -> bool:
        """A task's result. When the last one of an update is in, dropped prompts are refilled with new slots.

        Args:
            task: From `take`.
            experience: Reference to its experience.
            summary: What it says about itself.

        Returns:
            Whether the update's experience is now complete.

        Raises:
            TooManyFailures: Too large a share of the update's prompts was dropped.
        """  # noqa: DOC502
        state = self._open.get(task.update)
        if state is None or task not in state.running:
            return False  # of a learner group that is no more
        state.running.remove(task)
        state.results[task.index] = (experience, summary)
        state.made[task.index] = task
        if state.waiting or state.running:
            return False
        kept = sum(result.kept for _, result in state.results.values())
        dropped = [entry for _, result in sorted_results(state.results) for entry in result.dropped]
        check_failures(dropped, state.slots, self._max_failed_share, task.update)
        if kept < self._prompts_per_update:
            self._add_tasks(task.update, refill_slots(state.slots, self._prompts_per_update - kept))
            return False
        state.complete = True
        return True

    def lose(self, update: int, experiences: Collection[Any]) -> int:
        """Experiences are gone, with the node that kept them: their tasks are first in line again.

        Args:
            update: 0-based update.
            experiences: References; those that are no longer the update's are not missed.

        Returns:
            How many tasks will be made again, with the same result.
        """
        state = self._open.get(update)
        if state is None:
            return 0
        gone = sorted(index for index, (experience, _) in state.results.items() if experience in experiences)
        for index in reversed(gone):
            del state.results[index]
            state.waiting.insert(0, state.made.pop(index))
        state.complete = state.complete and not gone
        return len(gone)

    def shares(self, update: int, rank: int, world: int) -> list[Share] | None:
        """The groups of an update that a learner rank learns from: equal shares, in task order.

        Args:
            update: 0-based update.
            rank: The learner's rank.
            world: Number of learner ranks; divides the groups of an update.

        Returns:
            The rank's groups, `None` while the update is not complete.
        """
        state = self._open.get(update)
        if state is None or not state.complete:
            return None
        results = [(ref, summary.groups) for ref, summary in sorted_results(state.results) if summary.kept]
        total = sum(groups for _, groups in results)
        first, last = rank * total // world, (rank + 1) * total // world
        shares, offset = [], 0
        for experience, groups in results:
            low, high = max(first, offset), min(last, offset + groups)
            if low < high:
                shares.append(Share(experience, low - offset, high - offset))
            offset += groups
        return shares

    def summaries(self, update: int) -> list[Summary]:
        """Summaries of a complete update, in task order.

        Args:
            update: 0-based update.

        Returns:
            One a task, refills included.
        """
        return [summary for _, summary in sorted_results(self._open[update].results)]

    def depth(self) -> Depth:
        """How full the hand-over is."""
        states = self._open.values()
        return Depth(*(sum(len(getattr(s, name)) for s in states) for name in ("waiting", "running", "results")))

    def consume(self, update: int) -> None:
        """An update was learnt from: let go of its experience.

        Args:
            update: 0-based update.
        """
        self._open.pop(update, None)
        self._next = update + 1

    def _add_tasks(self, update: int, slots: tuple[int, ...]) -> None:
        """Cut the next slots of an update into tasks."""
        state = self._open[update]
        for part in tasks(slots, self._rollout_batch_size):
            asked = tuple(self._item(update, slot) for slot in part)
            state.waiting.append(RolloutTask(update, state.tasks, state.version, part, asked, state.attempt))
            state.tasks += 1
        state.slots += len(slots)


def sorted_results(results: dict[int, tuple[Any, Summary]]) -> list[tuple[Any, Summary]]:
    """Results in task order.

    Args:
        results: By task index.

    Returns:
        The values, by rising index.
    """
    return [results[index] for index in sorted(results)]
