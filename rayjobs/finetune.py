"""Any fine-tuning method as a job: the same machinery, reward, evaluation and run folder for all of them.

    python rayjobs/finetune.py --method ddpo --help
    python rayjobs/finetune.py --method dpo --output_dir runs/dpo
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python rayjobs/finetune.py --method d3po

Exit codes are those of `rayjobs/rlhf.py`.
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
    from sharpening.methods import METHODS

    return run_job(argv, "finetune.py", tuple(METHODS))


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
