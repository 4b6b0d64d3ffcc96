"""What an update is made of, as pure functions: whole experiences, micro-batches. Any runtime builds on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sharpening.methods.base import Experience
from sharpening.slots import check_failures, refill_slots, slots_of_update, tasks

CollectTasks = Callable[[list[tuple[int, ...]]], list[Experience]]
"""Rolls out tasks (each a tuple of slots) and returns their experiences in the same order."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; the weights were not touched."""


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
        check_failures(experience.dropped, drawn, max_failed_share, experience.update)
        missing = prompts_per_update - len(experience.prompts)
        if missing == 0:
            return experience
        experiences += collect_tasks(tasks(refill_slots(drawn, missing), rollout_batch_size))
        drawn += missing


def inner_parts(experience: Experience, count: int) -> list[Experience]:
    """The shares of an update's experience that its optimiser steps learn from, one after the other.

    Every `count`-th group goes into the same share, so that the groups of a prompt are spread over the steps.

    Args:
        experience: the update's whole experience, or a rank's share of it.
        count: optimiser steps (`inner_steps`).

    Returns:
        Experiences of as many groups each as the number of groups allows.
    """
    if count == 1:
        return [experience]
    return [experience.select(range(first, experience.groups, count)) for first in range(count)]


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
