"""Tuning as a job: the same number of settings for every method, at one budget, judged on validation prompts.

    python rayjobs/trials.py --help
    python rayjobs/trials.py --methods rlhf dpo --train_seconds 150 --output_dir runs/trials
    python rayjobs/compare.py --trials runs/trials/trials.json

It goes on from what it has when it is started again with the same folder. Exit codes are those of `rayjobs/rlhf.py`.
"""

import io
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
    from rayjobs.comparison.options import TrialsOptions
    from rayjobs.errors import JobError
    from rayjobs.signals import interrupt_on_sigterm

    interrupt_on_sigterm()  # or the training job that it started would stay behind
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no λ still gets its help
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        options = read(TrialsOptions, given, "trials.py")
        assert isinstance(options, TrialsOptions)
        from rayjobs.comparison.tuning import Tuning

        tuning = Tuning(options, shlex.join(["python", "rayjobs/trials.py", *given]))
        path = tuning.execute()
    except JobError as error:
        print(f"trials: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trials: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    from sharpening.evaluation.comparison.sections import trials_table

    print(trials_table(tuning.trials()))
    print(f"trials: {path}")
    return 0


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
