"""Copying a run folder to object storage by hand: all that is new, whole checkpoints only.

    python rayjobs/upload.py runs/first s3://bucket/first

Runs whose --output_dir is an address copy themselves; this is for what a run could not copy, and for runs that stayed
in their folders. Either can then be gone on with from the address. Exit codes: 0 when everything is there, 1 when
something was not copied, 2 when the folder is no run's or the address another run's or wrong, 130 on Ctrl-C.
"""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Copy.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    from rayjobs.arguments import OneLineParser

    parser = OneLineParser(prog="upload.py", description="Copy a run folder to object storage: all that is new.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("address", metavar="ADDRESS", help="such as s3://bucket/run; keys come from the environment")
    asked = parser.parse_args(argv)
    from rayjobs.errors import ArgumentError, OptionError
    from rayjobs.mirror.by_hand import copy_run
    from rayjobs.outcome import outcome

    def work() -> None:
        try:
            print(copy_run(asked.run.expanduser(), asked.address))
        except OptionError as error:
            raise ArgumentError(error.option, error.problem, error.remedy) from error

    return outcome("upload", work)


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
