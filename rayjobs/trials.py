"""Tuning as a job: the same number of settings for every method, at one budget, judged on validation prompts.

    python rayjobs/trials.py --help
    python rayjobs/trials.py --methods rlhf dpo --train_seconds 150 --output_dir runs/trials
    python rayjobs/compare.py --trials runs/trials/trials.json

It goes on from what it has when it is started again with the same folder. Exit codes are those of `rayjobs/rlhf.py`.
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
    from rayjobs.comparison.options import TrialsOptions
    from rayjobs.outcome import outcome
    from rayjobs.signals import interrupt_on_sigterm

    given = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        options = read(TrialsOptions, given, "trials.py")
        assert isinstance(options, TrialsOptions)
        from rayjobs.comparison.tuning import Tuning
        from sharpening.evaluation.comparison.sections import trials_table

        tuning = Tuning(options, shlex.join(["python", "rayjobs/trials.py", *given]))
        path = tuning.execute()
        print(f"{trials_table(tuning.trials())}\ntrials: {path}")

    interrupt_on_sigterm()  # or the training job that it started would stay behind
    return outcome("trials", work, "the same command goes on from here")


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
