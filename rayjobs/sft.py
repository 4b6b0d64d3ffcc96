"""SFT trajectory sharpening as a job (Algorithm 1): images and captions in, the best of several noisy branches learnt.

    python rayjobs/sft.py --help
    python -m sharpening.shapes.dataset --output shapes.parquet --count 2000
    python rayjobs/sft.py --train_data shapes.parquet --output_dir runs/sft

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

    return run_job(argv, "sft.py", ("sft",))


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
