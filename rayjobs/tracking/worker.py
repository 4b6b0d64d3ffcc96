"""A tracker in a thread of its own, so that one that waits for its network holds up neither the run nor the others."""

import json
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rayjobs.tracking.base import TrackedRun, Tracker
from rayjobs.tracking.secrets import scrub
from sharpening.evaluation.files import write_json

logger = logging.getLogger(__name__)


@dataclass
class Place:
    """How far a tracker has followed a run; kept beside its files, so that a run that goes on is told on from there.

    Attributes:
        identity: What finds the tracker's run again.
        rows: Updates whose metrics it has.
        look: Updates made at the last held-out look it has; -1 before the first.
        images: Names of the pictures it has, apart from those of looks at held-out prompts.
    """

    identity: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    look: int = -1
    images: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Place":
        """What an earlier start of the run left; a new place where there is nothing to go on from.

        Args:
            path: The file.

        Returns:
            The place.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()


Call = Callable[[Tracker, Place], None]


class Worker(threading.Thread):
    """One tracker's thread and queue. The first error ends it, with a warning; the run goes on.

    Args:
        name: The tracker's name.
        make: Makes the tracker.
        run: What it is started with.
        path: Where its place is kept.
        say: Shows a line to the user.
    """

    def __init__(
        self, name: str, make: Callable[[], Tracker], run: TrackedRun, path: Path, say: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"tracker-{name}", daemon=True)
        self._make, self._path, self._say = make, path, say
        self.place = Place.read(path)
        self._tracked = replace(run, identity=self.place.identity)
        self._tracker_name = name
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self.failed = False

    def put(self, call: Call | None) -> None:
        """Have the tracker do something later.

        Args:
            call: What; `None` ends the thread.
        """
        if not self.failed:
            self._calls.put(call)

    def run(self) -> None:
        """Start the tracker and do what it is given."""
        try:
            tracker = self._make()
            self.place.identity = tracker.start(self._tracked)
            self._keep()
            self._say(f"{self._tracker_name}: {scrub(tracker.where())}")
            while (call := self._calls.get()) is not None:
                call(tracker, self.place)
                self._keep()
        except Exception as error:
            self.failed = True
            logger.info("tracker %s failed", self._tracker_name, exc_info=error)
            self._say(warning(self._tracker_name, error))

    def _keep(self) -> None:
        write_json(self._path, asdict(self.place))


def warning(name: str, error: Any) -> str:
    """What the user is told of a tracker that failed.

    Args:
        name: The tracker.
        error: What happened.

    Returns:
        One line.
    """
    lines = [line.strip() for line in scrub(str(error)).splitlines() if line.strip()]
    said = lines[0][:200].rstrip(".") if lines else type(error).__name__
    return (
        f"{name} does not follow the run any more ({said}); the run goes on, and its folder holds everything. Check "
        f"its address, key and network; {REMEDIES[name]}"
    )


REMEDIES = {
    "tensorboard": "resuming the run tells it what it missed",
    "wandb": "WANDB_MODE=offline keeps a run here, for `wandb sync`; resuming the run tells it what it missed",
    "mlflow": "without MLFLOW_TRACKING_URI it is kept in the run folder; resuming the run tells it what it missed",
}
