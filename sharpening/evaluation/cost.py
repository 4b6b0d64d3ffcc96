"""What a run cost: denoiser evaluations, seconds a stage, images scored, peak memory a process role."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

NFE_STAGES = ("rollout", "reference", "learn", "evaluate", "rank")


def peak_rss() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class CostAccount:
    """Adds up what the parts of a run report. One call counts at a time, from any thread.

    Seconds are process-seconds: two actors that generate for a minute each make two minutes.

    Attributes:
        nfe: denoiser evaluations by stage, one an image and forward pass (guidance makes two).
        seconds: seconds by stage.
        images_scored: images sent to the reward.
        peak_memory: bytes by process role, the largest that any process of the role reported.
    """

    def __init__(self) -> None:
        self.nfe: dict[str, int] = dict.fromkeys(NFE_STAGES, 0)
        self.seconds: dict[str, float] = {}
        self.images_scored = 0
        self.peak_memory: dict[str, int] = {}
        self._lock = threading.Lock()

    def add_nfe(self, stage: str, evaluations: int) -> None:
        """Count denoiser evaluations.

        Args:
            stage: where they were spent; one of `NFE_STAGES`.
            evaluations: how many.

        Raises:
            ValueError: if there is no such stage.
        """
        if stage not in self.nfe:
            raise ValueError(f"no stage {stage!r}, only {', '.join(NFE_STAGES)}")
        with self._lock:
            self.nfe[stage] += int(evaluations)

    def add_seconds(self, seconds: Mapping[str, float] | str, spent: float = 0.0) -> None:
        """Count time.

        Args:
            seconds: seconds by stage, or one stage's name.
            spent: that stage's seconds.
        """
        items = {seconds: spent} if isinstance(seconds, str) else seconds
        with self._lock:
            for stage, value in items.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + float(value)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time a block takes, also when it fails.

        Args:
            stage: the stage's name.

        Yields:
            Nothing.
        """
        start = perf_counter()
        try:
            yield
        finally:
            self.add_seconds(stage, perf_counter() - start)

    def add_images(self, images: int) -> None:
        """Count images sent to the reward."""
        with self._lock:
            self.images_scored += int(images)

    def note_memory(self, role: str, peak: int | None = None) -> None:
        """Note a process's peak memory; the largest of a role counts.

        Args:
            role: what the process does: driver, learner, rollout, reward; `learner_gpu` for device memory.
            peak: bytes; this process's own resident peak by default.
        """
        value = peak_rss() if peak is None else int(peak)
        with self._lock:
            self.peak_memory[role] = max(self.peak_memory.get(role, 0), value)

    @property
    def training_nfe(self) -> int:
        """Denoiser evaluations of training."""
        return sum(count for stage, count in self.nfe.items() if stage != "evaluate")

    @property
    def total_nfe(self) -> int:
        """Denoiser evaluations of training and evaluation."""
        return sum(self.nfe.values())

    def as_dict(self) -> dict[str, Any]:
        """Contents of `cost.json`; `from_dict` reads them back.

        Returns:
            Evaluations by stage with their sums, seconds by stage, images scored, peak memory in bytes by role.
        """
        with self._lock:
            return {
                "nfe": {**self.nfe, "training": self.training_nfe, "total": self.total_nfe},
                "seconds": dict(sorted(self.seconds.items())),
                "images_scored": self.images_scored,
                "peak_memory_bytes": dict(sorted(self.peak_memory.items())),
            }

    @classmethod
    def from_dict(cls, contents: Mapping[str, Any]) -> CostAccount:
        """The account a resumed run goes on with: work done twice was paid for twice.

        Args:
            contents: what `as_dict` gave.

        Returns:
            An account with those counts.
        """
        account = cls()
        account.nfe = {stage: int(contents["nfe"].get(stage, 0)) for stage in NFE_STAGES}
        account.seconds = {stage: float(value) for stage, value in contents["seconds"].items()}
        account.images_scored = int(contents["images_scored"])
        account.peak_memory = {role: int(value) for role, value in contents["peak_memory_bytes"].items()}
        return account
