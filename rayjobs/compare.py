"""The comparison as a job: every system at the same budget, on the same held-out prompts and noise, and a report.

    python rayjobs/compare.py --help
    python rayjobs/compare.py --quick --output_dir runs/quick
    python rayjobs/compare.py --train_seconds 150 --seeds 0 1 2

It keeps what it has measured and goes on from there when it is started again with the same folder. Exit codes are
those of `rayjobs/rlhf.py`.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    from rayjobs.command_line import read
    from rayjobs.comparison.options import CompareOptions
    from rayjobs.outcome import outcome
    from rayjobs.signals import interrupt_on_sigterm

    given = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        options = read(CompareOptions, given, "compare.py")
        assert isinstance(options, CompareOptions)
        from rayjobs.comparison.run import Comparison

        print(f"report: {Comparison(options, shlex.join(['python', 'rayjobs/compare.py', *given])).execute()}")

    interrupt_on_sigterm()  # or the training job that it started would stay behind
    return outcome("compare", work, "the same command goes on from here")


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
