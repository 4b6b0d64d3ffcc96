"""What every job's file shares: an exit code and one line for whatever happens."""

import io
import sys
from collections.abc import Callable

from rayjobs.errors import JobError


def outcome(name: str, work: Callable[[], None], advice: str = "") -> int:
    """Do a job's work.

    Args:
        name: The job's name, which its messages begin with.
        work: The work.
        advice: How to go on after Ctrl-C.

    Returns:
        0 when the work is done, that of the error when it was refused or had to stop, 130 on Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no λ still gets its help
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        work()
    except JobError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted" + (f"; {advice}" if advice else ""), file=sys.stderr)
        return 130
    return 0
