"""Ctrl-C and SIGTERM: the first lets a run end in good order, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Counts the signals that ask a run to end; only the main thread can be told of any.

    Attributes:
        count: How many came.
        patient: Whether the first is only counted, for the run to heed. Before there is anything to end in good order,
            it is not.
    """

    def __init__(self) -> None:
        self.count = 0
        self.patient = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take the signals over for a block.

        Yields:
            Nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.catch()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def catch(self) -> None:
        """Take the signals over, in `caught`; again after something else has taken them."""
        if threading.current_thread() is not threading.main_thread():
            return

        def note(signum: int, frame: Any) -> None:
            self.count += 1
            if self.count > 1 or not self.patient:
                raise KeyboardInterrupt

        for number in SIGNALS:
            signal.signal(number, note)

    def heed_second(self) -> None:
        """End at once after the second signal, wherever the first found the run.

        Raises:
            KeyboardInterrupt: If it came.
        """
        if self.count > 1:
            raise KeyboardInterrupt
