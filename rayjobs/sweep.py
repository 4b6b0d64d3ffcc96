"""A sweep as a job: one fine-tuning job with many settings, under Ray Tune, and a table with the best first.

    python rayjobs/sweep.py --help
    python rayjobs/sweep.py --quick
    python rayjobs/sweep.py --branches 2 3 4 --temperature 0 4 --seeds 0 1 2 -- --max_train_steps 20
    python rayjobs/sweep.py --search optuna --learning_rate 1e-6..1e-4 --scheduler asha -- --max_train_steps 60
    python rayjobs/sweep.py --resume --output_dir runs/sweep-20260101-120000

What stands behind `--` are flags of `rayjobs/rlhf.py` (or, with `--method`, of `rayjobs/finetune.py`). Exit codes are
those of `rayjobs/rlhf.py`.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayjobs.options import JobOptions
    from rayjobs.sweeping.options import SweepOptions


def read_sweep(argv: Sequence[str]) -> "tuple[SweepOptions, JobOptions, Path]":
    """Read and check a sweep's command line, before anything heavy starts.

    Args:
        argv: Arguments without the program's name.

    Returns:
        The sweep's options, those of the job, and the sweep's folder, which is claimed.

    Raises:
        OptionError: If one is wrong, or a point of the space is none that the job can have.
    """  # noqa: DOC502
    from rayjobs.command_line import parse, read
    from rayjobs.sweeping.folder import claim
    from rayjobs.sweeping.options import QUICK, QUICK_JOB, SweepOptions
    from rayjobs.sweeping.space import Space, check_job
    from sharpening.methods import METHODS

    given = list(argv)
    own = given[: given.index("--")] if "--" in given else given
    job_flags = given[len(own) + 1 :]
    options = read(SweepOptions, own, "sweep.py")
    assert isinstance(options, SweepOptions)
    if options.quick:
        options = options.model_copy(update={n: v for n, v in QUICK.items() if n not in options.model_fields_set})
        job_flags = [*QUICK_JOB, *job_flags]

    def job_of(flags: Sequence[str]) -> "JobOptions":
        named = "--method" in flags or "--config" in flags
        return check_job(parse(flags, "sweep.py", tuple(METHODS) if named else ("rlhf",)))

    if not options.resume:
        Space(options, job_of(job_flags))  # a wrong space leaves no folder behind
    options, job_flags, folder = claim(options, job_flags)
    return options, job_of(job_flags), folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    from rayjobs.outcome import outcome

    given = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        options, job, folder = read_sweep(given)
        from rayjobs.sweeping.run import Sweep

        table = Sweep(options, job, folder, shlex.join(["python", "rayjobs/sweep.py", *given])).execute()
        print(f"\n{table}", flush=True)

    return outcome("sweep", work, "go on with --resume --output_dir and its folder")


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
