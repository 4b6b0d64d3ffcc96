"""How many actors, replicas and learners a run needs, by simulation from the stage times of one that was measured.

    python rayjobs/capacity.py runs/first --actors 1 2 4 8 16 --staleness 0 1 2
    python rayjobs/capacity.py cluster/capacity/sdxl.yaml --actors 64 256 1024 --actors_per_replica 16

Starts no Ray and no model. Exit codes are those of `rayjobs/rlhf.py`.
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
    from rayjobs.outcome import outcome
    from rayjobs.simulation.options import CapacityOptions

    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-"):
        given = ["--run", *given]

    def work() -> None:
        options = read(CapacityOptions, given, "capacity.py")
        assert isinstance(options, CapacityOptions)
        from rayjobs.simulation.plan import run_plan

        print(run_plan(options))

    return outcome("capacity", work)


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
