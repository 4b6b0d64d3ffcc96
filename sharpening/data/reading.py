"""Examples of a run's slots; one that cannot be used gives way to another, chosen by counters alone."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol, runtime_checkable

from sharpening.data.source import Batch, DataFileError, ExampleError, Source
from sharpening.seeds import generator

ATTEMPTS = 100
"""Examples that are tried for one slot before the data count as unusable."""
LOOKED_AT = 32
"""Examples that are tried before a run starts."""
SKIPPED, TRUNCATED = "skipped", "truncated"
"""Columns of a metrics row: examples that were skipped, prompts that were cut."""


@dataclass(frozen=True)
class Reading:
    """Examples of some slots.

    Attributes:
        batch: one example a slot.
        skipped: (slot, reason) of each example that could not be used, in the order of the slots.
    """

    batch: Batch
    skipped: list[tuple[int, str]] = field(default_factory=list)


@runtime_checkable
class Bucketed(Protocol):
    """A source whose examples go together in some batches only.

    Attributes:
        counts: examples of each bucket; a bucket's examples are neighbours.
    """

    counts: tuple[int, ...]


def counts_of(source: object) -> tuple[int, ...]:
    """Examples of each bucket of a source.

    Args:
        source: any source, or none.

    Returns:
        Their numbers; empty where it has no buckets.
    """
    return source.counts if isinstance(source, Bucketed) else ()


def read(source: Source, items: Sequence[int], run_seed: int, update: int, slots: Sequence[int]) -> Reading:
    """The examples of some slots of an update; one that cannot be used gives way to another of its kind.

    A pure function of its arguments: it does not matter which process reads, or how often.

    Args:
        source: the examples.
        items: places of the examples that the slots should get.
        run_seed: the run's seed.
        update: update, from 0.
        slots: slots of that update.

    Returns:
        One example a slot, and what was skipped on the way.

    Raises:
        DataFileError: if the data cannot be read at all, or `ATTEMPTS` examples in a row cannot be used.
    """  # noqa: DOC502
    try:
        return Reading(source.batch(items))
    except ExampleError:
        skipped: list[tuple[int, str]] = []
        found = [
            _one(source, item, (run_seed, "stand-in", update, slot), skipped)
            for item, slot in zip(items, slots, strict=True)
        ]
        return Reading(Batch.cat(found), skipped)


def _one(source: Source, item: int, place: tuple[int, str, int, int], skipped: list[tuple[int, str]]) -> Batch:
    first, last = _peers(source, item)
    for attempt in range(ATTEMPTS):
        try:
            return source.batch([item])
        except ExampleError as error:
            skipped.append((place[-1], error.reason))
            problem = str(error)
            item = int(generator(*place, attempt).integers(first, last))
    raise DataFileError(f"{ATTEMPTS} examples in a row cannot be used, the last because {problem}")


def _peers(source: Source, item: int) -> tuple[int, int]:
    """Places of the examples that may stand in for one: the first, and the one after the last."""
    if not isinstance(source, Bucketed):
        return 0, len(source)
    ends = list(accumulate(source.counts))
    bucket = bisect_right(ends, item)
    return ends[bucket] - source.counts[bucket], ends[bucket]


def look(source: Source) -> None:
    """Try examples spread over the whole source, so that what is wrong with all of them is found before a run starts.

    Args:
        source: the examples, at least one.

    Raises:
        ExampleError: if none of them can be used; what is wrong with the first.
    """
    first: ExampleError | None = None
    count = min(LOOKED_AT, len(source))
    for place in range(count):
        try:
            source.batch([place * len(source) // count])
        except ExampleError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def data_columns(skipped: Iterable[tuple[int, str]], truncated: int = 0) -> dict[str, int]:
    """What was wrong with an update's examples as columns of its metrics row; none where nothing was.

    Args:
        skipped: (slot, reason) of each example that was skipped.
        truncated: prompts that are longer than the model reads.

    Returns:
        `skipped`, `skipped_REASON` each, and `truncated`.
    """
    reasons = Counter(f"{SKIPPED}_" + re.sub(r"\W+", "_", reason) for _, reason in skipped)
    found = {SKIPPED: reasons.total(), **dict(sorted(reasons.items())), TRUNCATED: truncated}
    return {name: count for name, count in found.items() if count}


def told(columns: Mapping[str, float]) -> str:
    """A sentence about columns that `data_columns` made.

    Args:
        columns: those of an update, or sums of many; others are passed over.

    Returns:
        What was skipped and cut, with counts; empty where nothing was.
    """
    reasons = [
        f"{name.removeprefix(SKIPPED + '_').replace('_', ' ')}: {int(count)}"
        for name, count in columns.items()
        if name.startswith(SKIPPED + "_") and count
    ]
    parts = []
    if reasons:
        parts.append(f"examples were skipped and others took their place ({', '.join(reasons)})")
    if cut := int(columns.get(TRUNCATED, 0)):
        subject, verb = ("1 prompt is", "was") if cut == 1 else (f"{cut} prompts are", "were")
        parts.append(f"{subject} longer than the model reads and {verb} cut")
    return "; ".join(parts)
