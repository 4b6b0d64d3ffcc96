"""What the fine-tuning jobs' files share: parse, validate, run, and an exit code for whatever happens."""

import sys
from collections.abc import Sequence

from rayjobs.command_line import parse
from rayjobs.outcome import outcome
from rayjobs.validation import validate


def run_job(argv: Sequence[str] | None, program: str, methods: Sequence[str]) -> int:
    """Run a fine-tuning job.

    Args:
        argv: Arguments without the program's name; those of the process by default.
        program: The job's file name.
        methods: The methods that it can run.

    Returns:
        0 when all updates were made, 2 when an option is wrong (nothing was started), 1 when the run had to stop (its
        last checkpoint is intact, and the message says how to continue), 130 on Ctrl-C.
    """

    def work() -> None:
        asked = parse(sys.argv[1:] if argv is None else argv, program, methods)
        options = validate(asked)
        from rayjobs.runtime.driver import run

        run(options, asked=asked)

    return outcome(program.removesuffix(".py"), work)
