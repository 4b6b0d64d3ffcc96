"""A run's report page: one HTML file without a network, made from the run folder's files alone.

    python rayjobs/report.py runs/rlhf-20250101-120000
    python rayjobs/report.py runs/rlhf-20250101-120000 --output /tmp/run.html

Every run writes `report.html` at its end. This command makes it again, or while a run goes on, or after it died. Exit
codes: 0 when the page was written, 2 when the folder is no run's or a file in it is damaged.
"""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    from rayjobs.arguments import OneLineParser

    parser = OneLineParser(
        prog="report.py", description="Make a run's report page, one HTML file that needs no network."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the page [default: report.html in the run folder]")
    asked = parser.parse_args(argv)
    from rayjobs.errors import JobError
    from rayjobs.page import PAGE, write_page

    run = asked.run.expanduser()
    output = asked.output.expanduser() if asked.output else run / PAGE
    try:
        write_page(run, output)
    except JobError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"report: error: {output} cannot be written ({error.strerror or error}); pass another --output",
            file=sys.stderr,
        )
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    # The project's folder, not this file's, from which `rayjobs/errors.py` would be a top-level module.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
