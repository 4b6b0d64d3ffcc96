"""Slots, the places of prompts within an update: how they are cut into tasks and refilled. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


class TooManyFailures(RuntimeError):
    """More of an update's prompts failed to score than the run puts up with."""


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


def check_failures(dropped: Sequence[tuple[int, str]], drawn: int, max_failed_share: float, update: int) -> None:
    """Stop when the reward fails too often to go on.

    Args:
        dropped: (slot, reason) of the update's dropped prompts.
        drawn: slots of this update drawn so far.
        max_failed_share: largest share of drawn prompts that may fail.
        update: the update, for the message.

    Raises:
        TooManyFailures: if more failed.
    """
    if len(dropped) > max_failed_share * drawn:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r for _, r in dropped).most_common())
        raise TooManyFailures(
            f"{len(dropped)} of {drawn} prompts of update {update} could not be scored ({reasons}), more than the "
            f"share of {max_failed_share:g} allowed; check the reward, or raise --max_failed_share"
        )


def dropped_columns(dropped: Sequence[tuple[int, str]]) -> dict[str, int]:
    """An update's dropped prompts as columns of its metrics row.

    Args:
        dropped: (slot, reason) of each.

    Returns:
        `dropped`, and how many for each reason: `dropped_not_finite`, and where several rewards were asked
        `dropped_<reward>_not_finite`.
    """
    reasons = Counter("dropped_" + re.sub(r"\W+", "_", reason) for _, reason in dropped)
    return {"dropped": len(dropped), **dict(sorted(reasons.items()))}
