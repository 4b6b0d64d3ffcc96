"""The rewards' benchmark: images a second in the process, through a handle, and over HTTP, by concurrent callers.

    python rayjobs/bench_rewards.py --help
    python rayjobs/bench_rewards.py --quick
    python rayjobs/bench_rewards.py --json rewards.json --write docs/performance.md

Everything that is compared is measured in the same run and by turns, because machines are shared. Progress goes to
standard error, the tables to standard output. Nothing else heavy should run on the machine meanwhile.
"""

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rayjobs.options import Options, option

GROUPS = {
    "reward": "what is served",
    "load": "who asks, and how long",
    "output": "where numbers go",
}
FULL, QUICK = {"seconds": 4.0, "turns": 3}, {"seconds": 1.0, "turns": 1}


class BenchRewardsOptions(Options):
    """What the benchmark is told."""

    groups: ClassVar[dict[str, str]] = GROUPS
    about: ClassVar[str] = (
        "Measures a reward on this machine: a scorer in one process, the same behind a Serve handle with images passed "
        "by reference, and behind the HTTP gateway. About 5 minutes on 2 idle cores."
    )

    reward: str = option("clip", "reward", "name", "name of the reward, or module:class of a scorer")
    reward_model: str | None = option(None, "reward", "folder or hub id", "its model", shown="its own")
    reward_replicas: int = option(1, "reward", "processes", "replicas behind handle and gateway", ge=1)
    reward_threads: int = option(1, "reward", "CPU threads", "torch threads of a replica, and of the process", ge=1)
    batch_size: int = option(32, "reward", "images", "images of a forward pass", ge=1)
    max_batch_images: int = option(64, "reward", "images", "images that are scored together at most", ge=1)
    callers: tuple[int, ...] = option((1, 16, 256), "load", "callers", "how many ask at a time")
    images_per_call: tuple[int, ...] = option((1, 16), "load", "images", "how many images each asks about at once")
    seconds: float | None = option(None, "load", "seconds", "wall time of each measurement", shown="4, quick: 1", gt=0)
    turns: int | None = option(None, "load", "turns", "measurements of each kind, by turns", shown="3, quick: 1", ge=1)
    quick: bool = option(False, "load", "-", "short measurements: shows that it works, and no more")
    json_file: str | None = option(None, "output", "file", "every number, as JSON")
    write: str | None = option(None, "output", "file", "put the tables into this page, between its markers")


def read_options(argv: Sequence[str]) -> BenchRewardsOptions:
    """Parse and check, before anything heavy starts.

    Args:
        argv: arguments, without the program's name.

    Returns:
        Options whose `seconds` and `turns` are settled.

    Raises:
        OptionError: if one is wrong.
    """
    from rayjobs.benchmark.reward_tables import split_page
    from rayjobs.command_line import read
    from rayjobs.errors import OptionError

    options = read(BenchRewardsOptions, argv, "bench_rewards.py")
    assert isinstance(options, BenchRewardsOptions)
    for name in ("callers", "images_per_call"):
        if not getattr(options, name) or min(getattr(options, name)) < 1:
            raise OptionError(name, "holds a number below 1", "pass 1 or more")
    if options.write is not None:
        try:
            split_page(Path(options.write))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OptionError("write", f"{options.write} is not a page to write to ({reason})", "mend it") from error
    if options.json_file is not None and not Path(options.json_file).absolute().parent.is_dir():
        raise OptionError("json_file", f"there is no folder for {options.json_file}", "make it, or pass another file")
    defaults = QUICK if options.quick else FULL
    settled = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    return options.model_copy(update=settled)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 when everything was measured, whatever the numbers; 2 for a wrong option, 1 for a failure.
    """
    from rayjobs.errors import JobError
    from rayjobs.signals import interrupt_on_sigterm

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"bench-rewards: {time.monotonic() - began:4.0f} s  {text}", file=sys.stderr, flush=True)

    interrupt_on_sigterm()  # or the Ray that it started would stay behind
    try:
        options = read_options(list(sys.argv[1:] if argv is None else argv))
        load = os.getloadavg()[0]
        os.environ.pop("RAY_ADDRESS", None)
        from rayjobs.benchmark import reward_tables, rewards
        from rayjobs.benchmark.tables import markdown, text_table

        measured = rewards.measure(options, say)
    except JobError as error:
        print(f"bench-rewards: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"bench-rewards: interrupted {error}".rstrip(), file=sys.stderr)
        return 130
    found = reward_tables.summarise(measured)
    parts = reward_tables.sections(found, options.model_dump())
    above = reward_tables.heading(load, options.quick, time.monotonic() - began)
    print(text_table(parts, above), flush=True)
    if options.json_file is not None:
        contents = {"options": options.model_dump(), "load": load, "summary": found, "measured": measured}
        Path(options.json_file).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    if options.write is not None:
        reward_tables.write_page(Path(options.write), markdown(parts, above))
    return 0


if __name__ == "__main__":
    # Python put this script's own folder on the path, where the project's is needed.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
