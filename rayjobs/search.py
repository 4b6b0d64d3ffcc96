"""A search at inference as a job: prompts over actors, scores through Serve, the best image of each and its cost.

    python rayjobs/search.py --help
    python rayjobs/search.py --search zero_order --budget 192 --num_prompts 96
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python rayjobs/search.py --search demon

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
    from rayjobs.command_line import read
    from rayjobs.options.search import SearchJobOptions
    from rayjobs.outcome import outcome

    def work() -> None:
        options = read(SearchJobOptions, list(sys.argv[1:] if argv is None else argv), "search.py")
        assert isinstance(options, SearchJobOptions)
        from rayjobs.runtime.searching import SearchRun

        print(SearchRun(options).execute())

    return outcome("search", work, "the same command with --output_dir goes on from here")


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
