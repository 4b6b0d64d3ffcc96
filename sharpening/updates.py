"""What an update is made of, as pure functions: slots, tasks, refills, micro-batches. Any runtime builds on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from sharpening.methods.base import Experience

CollectTasks = Callable[[list[tuple[int, ...]]], list[Experience]]
"""Rolls out tasks (each a tuple of slots) and returns their experiences in the same order."""


class TooManyFailures(RuntimeError):
    """More of an update's prompts failed to score than the run puts up with."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; the weights were not touched."""


def slots_of_update(prompts_per_update: int) -> tuple[int, ...]:
    """The slots an update starts with.

    Args:
        prompts_per_update: prompts of an update.

    Returns:
        0, 1, ... prompts_per_update − 1.
    """
    return tuple(range(prompts_per_update))


def tasks(slots: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut slots into tasks, the fixed unit of rollout work whatever the number of actors.

    Args:
        slots: slots in order.
        size: slots of a task (`rollout_batch_size`).

    Returns:
        Tasks in order; the last may be smaller.
    """
    return [tuple(slots[start : start + size]) for start in range(0, len(slots), size)]


def refill_slots(drawn: int, missing: int) -> tuple[int, ...]:
    """The slots that replace dropped prompts.

    Args:
        drawn: slots of this update drawn so far.
        missing: prompts still needed.

    Returns:
        The next `missing` slots.
    """
    return tuple(range(drawn, drawn + missing))


def check_failures(dropped: Sequence[tuple[int, str]], drawn: int, max_failed_share: float) -> None:
    """Stop when the reward fails too often to go on.

    Args:
        dropped: (slot, reason) of the update's dropped prompts.
        drawn: slots of this update drawn so far.
        max_failed_share: largest share of drawn prompts that may fail.

    Raises:
        TooManyFailures: if more failed.
    """
    if len(dropped) > max_failed_share * drawn:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in Counter(r for _, r in dropped).most_common())
        raise TooManyFailures(
            f"{len(dropped)} of {drawn} prompts of this update failed to score ({reasons}); "
            f"check the reward, or raise max_failed_share ({max_failed_share})"
        )


def collect_update(
    collect_tasks: CollectTasks, prompts_per_update: int, rollout_batch_size: int, max_failed_share: float
) -> Experience:
    """Roll out one update: its tasks, then further slots until the dropped prompts are replaced.

    Args:
        collect_tasks: rolls out tasks, in this process or in others.
        prompts_per_update: prompts the update needs.
        rollout_batch_size: prompts of a task.
        max_failed_share: largest share of drawn prompts that may fail, below 1.

    Returns:
        The update's experience, `prompts_per_update` prompts in the order of their slots.

    Raises:
        TooManyFailures: if more prompts failed.
    """  # noqa: DOC502
    drawn = prompts_per_update
    experiences = list(collect_tasks(tasks(slots_of_update(prompts_per_update), rollout_batch_size)))
    while True:
        experience = Experience.cat(experiences)
        check_failures(experience.dropped, drawn, max_failed_share)
        missing = prompts_per_update - len(experience.prompts)
        if missing == 0:
            return experience
        experiences += collect_tasks(tasks(refill_slots(drawn, missing), rollout_batch_size))
        drawn += missing


def micro_batches(
    experience: Experience, size: int, rank: int = 0, world_size: int = 1
) -> list[tuple[Experience, float]]:
    """One learner rank's forward and backward passes of an update, with the weight of each.

    `Σ weight · loss`, averaged over ranks, is the mean over all groups, whatever `size` and `world_size` are. All ranks
    get equally many passes (collectives need that): a rank with fewer groups repeats one at weight 0.

    Args:
        experience: the update's whole experience.
        size: groups of one pass (`train_batch_size`).
        rank: this learner rank.
        world_size: number of learner ranks.

    Returns:
        (part, weight) of each pass; all parts but the last have `size` groups.

    Raises:
        ValueError: if there is no group.
    """
    total = experience.groups
    if total == 0:
        raise ValueError("an update without a group cannot be learned from")
    bounds = [total * r // world_size for r in range(world_size + 1)]
    passes = math.ceil(max(end - start for start, end in zip(bounds, bounds[1:], strict=False)) / size)
    own = range(bounds[rank], bounds[rank + 1])
    parts = [own[start : start + size] for start in range(0, len(own), size)]
    batches = [(experience.select(list(part)), world_size * len(part) / total) for part in parts]
    idle = (experience.select([0]), 0.0)
    return batches + [idle] * (passes - len(batches))


def mean_metrics(weighted: Iterable[tuple[dict[str, float], float]]) -> dict[str, float]:
    """Metrics of an update from those of its micro-batches.

    Args:
        weighted: (metrics, weight) of each, as `micro_batches` weighs them.

    Returns:
        Name to weighted mean.
    """
    sums: dict[str, float] = {}
    total = 0.0
    for metrics, weight in weighted:
        total += weight
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + weight * value if weight else sums.get(name, 0.0)
    return {name: value / total for name, value in sums.items()} if total else sums


def learning_rate_at(update: int, learning_rate: float, lr_warmup_steps: int) -> float:
    """Constant learning rate with a linear warmup.

    Args:
        update: update, from 0.
        learning_rate: the constant.
        lr_warmup_steps: updates of the warmup; the last of them runs at the full rate.

    Returns:
        The update's learning rate.
    """
    return learning_rate * min(1.0, (update + 1) / lr_warmup_steps) if lr_warmup_steps else learning_rate
