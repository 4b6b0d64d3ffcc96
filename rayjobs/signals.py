"""What a job does when it is told to stop."""

import signal
from typing import Any


def interrupt_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does, so that a job that is terminated ends the processes that it started."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    signal.signal(signal.SIGTERM, interrupt)
