"""How a sweep goes, one line an event: Tune's own table is for screens, and this is a job's log."""

import sys
import time
from typing import Any

from ray.tune import Callback

from rayjobs.sweeping.space import label
from rayjobs.sweeping.trial import METRIC, TIME, of_config

_STARTED = time.monotonic()


def say(text: str) -> None:
    """Write a line to the job's log.

    Args:
        text: the line.
    """
    print(f"sweep: {time.monotonic() - _STARTED:5.0f} s  {text}", file=sys.stderr, flush=True)


class Progress(Callback):
    """Says when runs start, what their held-out reward is, and how they end.

    Args:
        wanted: runs of the sweep.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._ended: set[str] = set()

    def get_state(self) -> dict[str, Any]:
        """What a sweep that goes on must know: the runs that have ended."""
        return {"ended": sorted(self._ended)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on.

        Args:
            state: From `get_state`, in the process that was interrupted.
        """
        self._ended = set(state["ended"])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a run starts."""
        self._tell(trial, "starts")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Say what held-out images of a run score."""
        self._tell(trial, f"held-out reward {result[METRIC]:.2f} after {result[TIME]} updates")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a run that came to its end or was ended early."""
        self._end(trial, "has ended")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a run failed and is tried again."""
        self._tell(trial, "failed and goes on from its newest checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a run failed for good."""
        self._end(trial, "failed; the report has its error")

    def _end(self, trial: Any, how: str) -> None:
        self._ended.add(trial.trial_id)
        self._tell(trial, how)

    def _tell(self, trial: Any, what: str) -> None:
        point, seed = of_config(trial.config)
        say(f"{len(self._ended)}/{self._wanted} ended; {label(point)} seed={seed} {what}")
