"""Tells that the learners wait for a place on a cluster, of which Ray Train says nothing to anybody."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

EVERY_S = 60.0  # between two looks; a group that has not got its place within one is not about to


class PlaceWatch:
    """Looks whether the learners' placement group is pending.

    Args:
        rank: What each rank reserves, by resource.
        ranks: How many ranks there are.
        tell: Told a sentence.
    """

    def __init__(self, rank: Mapping[str, float], ranks: int, tell: Callable[[str], Any]) -> None:
        self._bundles = [dict(rank)] * ranks
        self._tell = tell
        self._next = time.monotonic() + EVERY_S
        self._told = False

    def look(self) -> None:
        """Ask Ray, now and then."""
        if time.monotonic() < self._next:
            return
        from ray.util import placement_group_table

        self._next = time.monotonic() + EVERY_S
        self.hear(placement_group_table().values())

    def hear(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Say what has changed.

        Args:
            groups: The cluster's placement groups, as Ray lists them.
        """
        own = [group for group in groups if list(group["bundles"].values()) == self._bundles]
        waits = any(group["state"] == "PENDING" for group in own)
        if waits and not self._told:
            each = " and ".join(f"{amount:g} {name}" for name, amount in self._bundles[0].items())
            ranks = "the learner waits" if len(self._bundles) == 1 else f"{len(self._bundles)} learners wait"
            self._tell(f"{ranks} for a place with {each} on a node; `ray status` tells what others have taken")
        if self._told and not waits:
            self._tell("the learners have their place")
        self._told = waits
