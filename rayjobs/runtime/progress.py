"""What a user sees while a run goes on: one moving line on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

PAUSE = 5.0  # least seconds between two lines of a log
BRIEF = ("validating",)  # phases that only a moving line shows: what they find gets a line of its own


class ProgressLine:
    """Shows the coordinator's status.

    Args:
        name: What each line begins with.
        stream: Where to; standard error by default.
    """

    def __init__(self, name: str = "rlhf", stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._moving = self._stream.isatty()
        self._bar: tqdm | None = None
        self._shown: tuple[str, int] | None = None
        self._phase_began = (0, time.monotonic())  # (done, when) at the phase's first sight
        self._printed = 0.0

    def say(self, text: str) -> None:
        """Write a line without harm to the moving one.

        Args:
            text: The line.
        """
        if self._bar is not None:
            self._bar.clear()
        print(f"{self._name}: {text}", file=self._stream, flush=True)

    def show(self, status: dict[str, Any]) -> None:
        """Show where the run is.

        Args:
            status: From `Coordinator.status`.
        """
        for text in status["events"]:
            self.say(text)
        phase, done, total = status["phase"], status["done"], status["total"]
        if not total or (phase, done) == self._shown:
            return
        if self._shown is None or self._shown[0] != phase:
            self._phase_began = (max(0, done - 1) if phase == "training" else done, time.monotonic())
            self._close_bar()
        self._shown = (phase, done)
        if self._moving:
            self._show_bar(phase, done, total, status["row"])
        elif phase not in BRIEF and (done == total or time.monotonic() - self._printed >= PAUSE):
            self._printed = time.monotonic()
            self.say(f"{phase} {done}/{total}{self._left(done, total)}{describe(phase, status['row'])}")

    def close(self) -> None:
        """Leave the last state standing."""
        self._close_bar()

    def _show_bar(self, phase: str, done: int, total: int, row: dict[str, Any]) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total, initial=done, desc=phase, file=self._stream, dynamic_ncols=True,
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}",
            )  # fmt: skip
        self._bar.n = done
        self._bar.set_postfix_str(describe(phase, row).lstrip(", "))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, done: int, total: int) -> str:
        first, began = self._phase_began
        passed = time.monotonic() - began
        if done <= first or done == total or passed < 1:
            return ""
        return f", {passed / (done - first) * (total - done):.0f} s left"


def describe(phase: str, row: dict[str, Any]) -> str:
    """An update's numbers for a line.

    Args:
        phase: Only training has numbers to show.
        row: The update's metrics.

    Returns:
        Such as `, reward 86.41 ± 2.10, loss 0.6871, 0.24 updates/s`; several rewards are told as their common level,
        `, rewards +0.31`; empty when there are none.
    """
    if phase != "training" or not row:
        return ""
    reward = f", reward {row['reward']:.2f} ± {row['reward_spread']:.2f}" if "reward" in row else ""
    if "reward_level" in row:
        reward = f", rewards {row['reward_level']:+.2f}"
    return f"{reward}, loss {row['loss']:.4f}, {row['updates_per_second']:.2f} updates/s"
