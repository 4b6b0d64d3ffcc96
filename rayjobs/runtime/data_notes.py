"""What a run says about examples that it could not use: once when a fault is first met, once as a sum at the end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sharpening.data.reading import SKIPPED, TRUNCATED, told


class DataNotes:
    """Counts faults of examples over a run's updates.

    Args:
        updates: Updates in the whole run.
    """

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._sums: Counter[str] = Counter()

    def begin(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Go on after updates that were made before; what they met has been said.

        Args:
            rows: Their metrics.
        """
        self._sums = Counter()
        for row in rows:
            self._count(row)

    def after(self, row: Mapping[str, Any]) -> str:
        """Count an update.

        Args:
            row: Its metrics.

        Returns:
            A sentence for the log; empty when there is nothing to say.
        """
        known = set(self._sums)
        self._count(row)
        if row["update"] + 1 == self._updates and self._sums:
            return f"data, over all updates: {told(self._sums)}"
        if set(self._sums) > known:
            return f"data, up to update {row['update']}: {told(self._sums)}; metrics count on"
        return ""

    def _count(self, row: Mapping[str, Any]) -> None:
        names = [name for name in row if name.startswith(f"{SKIPPED}_") or name == TRUNCATED]
        # What an update lacks is read back from a table as NaN.
        self._sums.update({name: int(row[name]) for name in names if row[name] and row[name] == row[name]})
