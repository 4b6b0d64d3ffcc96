"""RLHF trajectory sharpening as a job: parse, validate, run.

    python rayjobs/rlhf.py --help
    python rayjobs/rlhf.py --max_train_steps 40 --output_dir runs/first
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python rayjobs/rlhf.py --branches 4

Exit codes: 0 when all updates were made, 2 when an option is wrong (nothing was started), 1 when a run had to stop
(its last checkpoint is intact, and the message says how to continue), 130 on Ctrl-C.
"""

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
    from rayjobs.job import run_job

    return run_job(argv, "rlhf.py", ("rlhf",))


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
