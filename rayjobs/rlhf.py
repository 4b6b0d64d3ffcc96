"""RLHF trajectory sharpening as a job: parse, validate, run.

    python rayjobs/rlhf.py --help
    python rayjobs/rlhf.py --max_train_steps 40 --output_dir runs/first
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python rayjobs/rlhf.py --branches 4

Exit codes: 0 when all updates were made, 2 when an option is wrong (nothing was started), 1 when a run had to stop
(its last checkpoint is intact, and the message says how to continue), 130 on Ctrl-C.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_packages() -> None:
    """Make `rayjobs` and `sharpening` importable when this file is run as a script of an uninstalled project.

    Python puts the script's own folder on the path, not the project's, and from there `rayjobs/errors.py` would be
    a top-level module.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "rayjobs"]
    if not any(Path(entry or ".").resolve() == ROOT for entry in sys.path):
        sys.path.insert(0, str(ROOT))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    from rayjobs.command_line import parse
    from rayjobs.errors import JobError
    from rayjobs.validation import validate

    for stream in (sys.stdout, sys.stderr):  # a terminal that has no λ still gets its help
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        options = validate(parse(sys.argv[1:] if argv is None else argv))
        from rayjobs.runtime.driver import run

        run(options)
    except JobError as error:
        print(f"rlhf: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("rlhf: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    find_packages()
    sys.exit(main())
