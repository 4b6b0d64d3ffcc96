"""The benchmark: what an update costs as a Ray job, in one process, and in the public code's order.

    python rayjobs/bench.py --help
    python rayjobs/bench.py --quick
    python rayjobs/bench.py --json bench.json --write docs/performance.md

Everything that is compared is measured in the same run and by turns, because machines are shared. Progress goes to
standard error, the tables to standard output. Nothing else heavy should run on the machine meanwhile.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayjobs.options import JobOptions

PARTS = ("ray", "memory", "rates")
FULL = {"turns": 2, "updates": 5, "seconds": 30.0, "evaluation_prompts": 48}
QUICK = {"turns": 1, "updates": 3, "seconds": 3.0, "evaluation_prompts": 0}
QUICK_JOB = {"prompts_per_update": 8, "rollout_batch_size": 4}
MEMORY_BRANCHES = (3, 8)
MEMORY_PROMPTS = 8


def build_parser() -> argparse.ArgumentParser:
    """The parser behind `--help`.

    Returns:
        A parser whose leftovers are options of the job.
    """
    parser = argparse.ArgumentParser(
        prog="bench.py", usage="python rayjobs/bench.py [--option VALUE ...] [options of rayjobs/rlhf.py]",
        description="Measures the job of rayjobs/rlhf.py on this machine: about 8 minutes on 2 idle cores.",
        epilog="All other options are the job's, such as --rollout_precision bf16; see rayjobs/rlhf.py --help.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a small job and few updates: shows that it works")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every number and measured update there")
    parser.add_argument("--write", metavar="FILE", type=Path, help="put the tables into this page, between its markers")
    parser.add_argument(
        "--parts", metavar="PART", nargs="+", choices=PARTS, default=list(PARTS),
        help="what to measure: ray (against one process), memory, rates (K = 1, K = 4, public order); default: all",
    )  # fmt: skip
    for name, kind, about in (
        ("turns", int, "turns of the Ray job and of the in-process loop"),
        ("updates", int, "updates of a turn; the first does not count"),
        ("seconds", float, "wall time of each contender of the part 'rates'"),
        ("evaluation_prompts", int, "held-out prompts behind the rewards of K = 1 and K = 4; 0: none"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, metavar=kind.__name__.upper(),
            help=f"{about} (default: {FULL[name]}, quick: {QUICK[name]})",
        )  # fmt: skip
    return parser


def read_options(argv: Sequence[str]) -> tuple[argparse.Namespace, "JobOptions"]:
    """Parse and check, before anything heavy starts.

    Args:
        argv: arguments.

    Returns:
        The benchmark's own, and the job's.

    Raises:
        OptionError: if one is wrong.
    """
    from rayjobs.benchmark.tables import split_at_markers
    from rayjobs.command_line import parse
    from rayjobs.errors import OptionError
    from rayjobs.validation import validate

    plan, rest = build_parser().parse_known_args(list(argv))
    defaults = QUICK if plan.quick else FULL
    for name, value in defaults.items():
        given = getattr(plan, name)
        setattr(plan, name, value if given is None else given)
    for name, least in (("turns", 1), ("updates", 2), ("evaluation_prompts", 0)):
        if getattr(plan, name) < least:
            raise OptionError(name, f"is {getattr(plan, name)}", f"pass {least} or more")
    if not 0 < plan.seconds < float("inf"):
        raise OptionError("seconds", f"is {plan.seconds}", "pass a number above 0")
    if plan.write is not None:
        try:
            split_at_markers(plan.write)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OptionError("write", f"{plan.write} is not a page to write to ({reason})", "mend it") from error
    if plan.json is not None and not plan.json.absolute().parent.is_dir():
        raise OptionError("json", f"there is no folder {plan.json.parent}", "make it, or pass another file")
    quick = [word for name, value in QUICK_JOB.items() for word in (f"--{name}", str(value))] if plan.quick else []
    options = parse([*quick, *rest])
    for name in ("ray_address", "bind", "output_dir", "resume_from_checkpoint"):
        if getattr(options, name) is not None:
            raise OptionError(name, "the benchmark starts jobs of its own, on this machine", "leave it out")
    if options.mixed_precision != "no":
        raise OptionError("mixed_precision", "the in-process loop learns in fp32 alone", "leave it out")
    for name in ("rank", "use_ema", "torch_compile", "use_8bit_adam", "pretrained_tiny_vae_path"):
        if getattr(options, name):
            raise OptionError(name, "the benchmark trains all weights, as plainly on both sides", "leave it out")
    os.environ.pop("RAY_ADDRESS", None)
    # A constant rate is what both sides have: they then make the same updates, not only as many.
    job = {
        "skip_evaluation": True, "max_train_steps": plan.updates, "lr_scheduler": "constant", "lr_warmup_steps": 0
    }  # fmt: skip
    return plan, validate(options.model_copy(update=job))


def use_same_cores(options: "JobOptions") -> int:
    """Give every process of the benchmark as many cores as threads compute at a time, where there are more.

    Args:
        options: validated options.

    Returns:
        Torch threads of the in-process loop: as many as the job's rollouts, or its learners, have together.
    """
    threads = max(options.num_rollout_actors * options.rollout_threads, options.num_learners * options.learner_threads)
    if options.use_gpu != "yes" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # inherited by everything started below
    return threads


def measure(
    plan: argparse.Namespace, options: "JobOptions", threads: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure everything.

    Args:
        plan: the benchmark's own options.
        options: the job's.
        threads: torch threads of the in-process loop.
        say: where progress goes.

    Returns:
        The measurements, for `rayjobs.benchmark.report.summarise`.
    """
    from rayjobs.benchmark.processes import TorchProcess, run_ray_job

    found: dict[str, Any] = {
        "prompts_per_update": options.prompts_per_update, "pairs_per_update": options.groups_per_update
    }  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharpening-bench-")))
        process = stack.enter_context(TorchProcess(options, threads, lambda text: say(f"one process: {text}")))
        found["device"] = process.call("device_name")
        if "ray" in plan.parts:
            found |= {"ray": [], "loop": []}
            for turn in range(plan.turns):
                say(f"Ray job against one process, turn {turn + 1}/{plan.turns}, {plan.updates} updates each")
                found["ray"].append(run_ray_job(options, plan.updates, folder / f"ray-{turn}", say))
                found["loop"].append(process.call("loop", updates=plan.updates))
        if "rates" in plan.parts:
            say(f"K = 1, K = 4 and the public code's order, {plan.seconds:g} s each")
            found["rates"] = process.call("rates", seconds=plan.seconds, evaluation_prompts=plan.evaluation_prompts)
        files = {n: folder / f"experience-{n}.pt" for n in MEMORY_BRANCHES}
        if "memory" in plan.parts:
            for n, file in files.items():
                say(f"collecting with n = {n}")
                process.call("collect", branches=n, prompts=MEMORY_PROMPTS, path=str(file))
        if "memory" in plan.parts:
            found["memory"] = measure_memory(plan, options, threads, files, say)
    return found


def measure_memory(
    plan: argparse.Namespace, options: "JobOptions", threads: int, files: dict[int, Path], say: Callable[[str], None]
) -> dict[str, dict[str, dict[str, int]]]:
    """Peaks of memory, each in a fresh process.

    Args:
        plan: the benchmark's own options.
        options: the job's.
        threads: torch threads.
        files: an experience by its number of branches.
        say: where progress goes.

    Returns:
        Bytes by learner, branches and kind.
    """
    from rayjobs.benchmark.processes import TorchProcess

    found: dict[str, dict[str, dict[str, int]]] = {}
    jobs: list[tuple[str, int, str, dict[str, Any]]] = [
        ("sharpening", n, "learner_memory", {"path": str(file)}) for n, file in files.items()
    ]
    if not plan.quick:
        jobs += [("public order", n, "yardstick_memory", {"branches": n}) for n in files]
    for name, n, job, arguments in jobs:
        say(f"memory of {name} at n = {n}")
        with TorchProcess(options, threads, lambda text: None) as process:
            found.setdefault(name, {})[str(n)] = process.call(job, **arguments)
    return found


def describe_machine(device: str) -> dict[str, Any]:
    """The machine and the versions, without its name.

    Args:
        device: the accelerator's name; empty on a CPU.

    Returns:
        `cpu`, `cores` in use, `memory_gib`, `load` (running processes over the last minute), `device`, `versions`.
    """
    from sharpening.evaluation.run_folder import versions

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        cpu = models[0] if models else cpu
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    found = versions()
    return {
        "cpu": cpu, "cores": found["cpus"], "memory_gib": round(memory), "device": device, "load": os.getloadavg()[0],
        "versions": found,
    }  # fmt: skip


def heading(machine: dict[str, Any], load: float, plan: argparse.Namespace, seconds: float) -> str:
    """What stands above the tables.

    Args:
        machine: from `describe_machine`.
        load: load average before the benchmark.
        plan: the benchmark's own options.
        seconds: how long it took.

    Returns:
        One paragraph.
    """
    packages = machine["versions"]["packages"]
    named = [f"{name} {packages[name]}" for name in ("torch", "ray", "deepspeed", "diffusers") if packages.get(name)]
    where = f"{machine['cpu']}, {machine['cores']} cores in use, {machine['memory_gib']} GiB"
    where += f", {machine['device']}" if machine["device"] else ", no GPU"
    kind = "A quick look, too short for conclusions; it" if plan.quick else "The benchmark"
    return (
        f"Measured on {where}; Python {machine['versions']['python']}, {', '.join(named)}. "
        f"{kind} took {seconds:.0f} s; before it {load:.1f} processes were running (load average of a minute)."
    )


def setting(options: "JobOptions") -> str:
    """The job's options that decide what an update costs, as a sentence."""
    from sharpening.options import SharpeningOptions

    method = options.method_options()
    assert isinstance(method, SharpeningOptions)
    return (
        f"{options.prompts_per_update} prompts an update in tasks of {options.rollout_batch_size}, "
        f"n = {method.branches}, m = {method.branch_steps}, K = {method.timesteps_per_rollout}, "
        f"{options.rollout_steps} sampler steps, guidance {options.guidance_scale:g}, {options.num_rollout_actors} "
        f"rollout actors × {options.rollout_threads} threads, {options.num_learners} learners × "
        f"{options.learner_threads} threads, staleness {options.staleness}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 when everything was measured, whatever the numbers; 2 for a wrong option, 1 for a failure.
    """
    from rayjobs.errors import JobError
    from rayjobs.signals import interrupt_on_sigterm

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"bench: {time.monotonic() - began:4.0f} s  {text}", file=sys.stderr, flush=True)

    interrupt_on_sigterm()  # or the processes that it started would stay behind
    try:
        plan, options = read_options(sys.argv[1:] if argv is None else argv)
        load, threads = os.getloadavg()[0], use_same_cores(options)
        measured = measure(plan, options, threads, say)
    except JobError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"bench: interrupted {error}".rstrip(), file=sys.stderr)
        return 130
    from rayjobs.benchmark import report, tables

    found = report.summarise(measured)
    machine = describe_machine(measured["device"])
    context = {"setting": setting(options), "threads": threads, "updates": plan.updates, "turns": plan.turns}
    parts = tables.sections(found, context)
    above = heading(machine, load, plan, time.monotonic() - began)
    print(tables.text_table(parts, above), flush=True)
    if plan.json is not None:
        contents = {"machine": machine, "context": context, "options": options.config(), **found, "measured": measured}
        plan.json.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    if plan.write is not None:
        tables.write_between_markers(plan.write, tables.markdown(parts, above))
    return 0


if __name__ == "__main__":
    # Python put this script's own folder on the path, where the project's is needed.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
