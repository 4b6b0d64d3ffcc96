"""What the coordinator's parts share: why the run ends early, what happened so far, and a bell to ring on changes."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

REWARD, FAILED_SHARE, NOT_FINITE, DISK, INTERRUPTED, BROKEN = (
    "reward", "failed share", "not finite", "disk", "interrupted", "broken",
)  # fmt: skip
SOUND = (REWARD, FAILED_SHARE, INTERRUPTED)  # after these the learner's weights are good, so it checkpoints them


@dataclass(frozen=True)
class Stop:
    """Why the run must end early.

    Attributes:
        kind: One of the kinds above.
        reason: One sentence for the user.
    """

    kind: str
    reason: str


@dataclass
class Progress:
    """What a progress line shows.

    Attributes:
        phase: What the run is doing.
        done: Parts of it that are done.
        total: Parts in all; 0 while there is nothing to count.
        row: Newest metrics.
    """

    phase: str = "starting"
    done: int = 0
    total: int = 0
    row: dict[str, Any] = field(default_factory=dict)


class RunState:
    """State of one run, changed on one event loop only.

    Args:
        keep: Given every event's text, kind and facts, to keep it on disk.

    Attributes:
        stop: Why the run ends early, once it does.
        events: What happened, a line each.
        restarts: Restarts so far, of rollout actors and of the learner group.
        progress: What a progress line shows.
        changed: Notified whenever something that others wait for may have changed.
    """

    def __init__(self, keep: Callable[..., None] | None = None) -> None:
        self._keep = keep
        self.stop: Stop | None = None
        self.events: list[str] = []
        self.restarts = {"rollout": 0, "learner": 0}
        self.progress = Progress()
        self.changed = asyncio.Condition()

    def say(self, text: str, kind: str = "note", **facts: Any) -> None:
        """Note an event for the driver's log, in this actor's own, and in the run folder.

        Args:
            text: One line.
            kind: What it is about, one word.
            **facts: Further fields for programs.
        """
        logger.warning(text)
        self.events.append(text)
        if self._keep is not None:
            self._keep(text, kind, **facts)

    def end(self, kind: str, reason: str) -> None:
        """End the run; the first reason counts.

        Args:
            kind: One of this module's kinds.
            reason: One sentence for the user.
        """
        if self.stop is None:
            self.stop = Stop(kind, reason)
            self.say(f"stopping: {reason}", "stop", why=kind)

    async def notify(self) -> None:
        """Wake everyone who waits for a change."""
        async with self.changed:
            self.changed.notify_all()


def last_line(error: BaseException) -> str:
    """An error in one line: Ray wraps a cause in its own traceback, whose last line says it best.

    Args:
        error: The exception.

    Returns:
        One line.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
