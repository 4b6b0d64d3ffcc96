"""The example of every slot where examples go together in buckets: every update is of one bucket."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharpening.data.prompts import Stream
from sharpening.data.shuffle import shuffled
from sharpening.seeds import generator


class BucketStream(Stream):
    """A `Stream` over a bucketed source; as pure a function of (run seed, update, slot).

    An epoch has `⌈n_b / per_update⌉` updates of each bucket b, in random order. They walk through the bucket's images,
    shuffled anew in every epoch; the last one is filled up from the beginning of that order.

    Attributes:
        counts: examples of each bucket, neighbours in the source.
        updates_per_epoch: updates until every example was seen.
    """

    def __init__(self, counts: Sequence[int], run_seed: int, per_update: int) -> None:
        """Make a stream.

        Args:
            counts: examples of each bucket, at least one.
            run_seed: the run's seed.
            per_update: slots an update has before refills.
        """
        super().__init__(sum(counts), run_seed, per_update)
        self.counts = tuple(counts)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._parts = np.cumsum([-(-count // per_update) for count in counts])
        self.updates_per_epoch = int(self._parts[-1])

    def bucket(self, update: int) -> int:
        """The bucket of an update.

        Args:
            update: update, from 0.

        Returns:
            Its place among the buckets.
        """
        return self._place(update)[0]

    def index(self, update: int, slot: int) -> int:
        """Which example one slot gets.

        Args:
            update: update, from 0.
            slot: slot of that update, from 0.

        Returns:
            Its place in the source, from 0.
        """
        bucket, part = self._place(update)
        start, count = int(self._starts[bucket]), self.counts[bucket]
        if slot >= self.per_update:
            return start + int(generator(self.run_seed, "refill", update, slot).integers(count))
        place = (part * self.per_update + slot) % count
        return start + shuffled(place, count, self.run_seed, "bucket", bucket, update // self.updates_per_epoch)

    def _place(self, update: int) -> tuple[int, int]:
        """An update's bucket, and its place among the bucket's updates of the epoch."""
        epoch, place = divmod(update, self.updates_per_epoch)
        number = shuffled(place, self.updates_per_epoch, self.run_seed, "buckets", epoch)
        bucket = int(np.searchsorted(self._parts, number, side="right"))
        return bucket, number - int(self._parts[bucket - 1] if bucket else 0)


def stream_of(count: int, buckets: Sequence[int], run_seed: int, per_update: int) -> Stream:
    """The stream over a source.

    Args:
        count: its examples.
        buckets: examples of each bucket; empty where it has none.
        run_seed: the run's seed.
        per_update: slots an update has before refills.

    Returns:
        The stream.
    """
    return BucketStream(buckets, run_seed, per_update) if buckets else Stream(count, run_seed, per_update)
