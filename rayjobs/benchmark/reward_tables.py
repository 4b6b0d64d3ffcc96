"""The rewards' benchmark as tables, and the part of a page where they stand. Imports neither torch nor Ray."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rayjobs.benchmark.tables import Section, number

BEGIN, END = "<!-- bench-rewards:begin -->", "<!-- bench-rewards:end -->"
TARGET, TARGET_CALLERS = 0.8, 256
SIZES = (1, 8, 16, 32, 64)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each number of callers and of images.

    Args:
        rows: from `rayjobs.benchmark.rewards.measure`.

    Returns:
        For each way its `images_per_s` (median over turns), `p50_s` and `p99_s` of all calls; for served ways the
        `ratio` to the process (median over turns of each turn's), `batch_images` and CPU milliseconds an image.
    """
    keys = sorted({(row["images_per_call"], row["callers"]) for row in rows})
    return [_entry(images, callers, rows) for images, callers in keys]


def _entry(images: int, callers: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [row for row in rows if (row["images_per_call"], row["callers"]) == (images, callers)]
    alone = {row["turn"]: row["images_per_s"] for row in mine if row["way"] == "process"}
    entry: dict[str, Any] = {"images_per_call": images, "callers": callers}
    for way in ("process", "handle", "http"):
        of_way = [row for row in mine if row["way"] == way]
        latencies = sorted(seconds for row in of_way for seconds in row["latency_s"])
        entry[way] = {
            "images_per_s": median(row["images_per_s"] for row in of_way),
            "ratio": median(row["images_per_s"] / alone[row["turn"]] for row in of_way),
            "p50_s": quantile(latencies, 0.5), "p99_s": quantile(latencies, 0.99), "calls": len(latencies),
            "caller_cpu_ms": median(row["cpu_ms"] for row in of_way),
        }  # fmt: skip
        looked = [row for row in of_way if "batch_images" in row]
        if looked:
            batches: Counter[int] = Counter()
            for row in looked:
                batches.update({int(size): count for size, count in row["batch_images"].items()})
            entry[way]["batch_images"] = dict(sorted(batches.items()))
            entry[way]["server_cpu_ms"] = median(row["server_cpu_ms"] for row in looked)
    return entry


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least a share of them does not exceed.

    Args:
        values: sorted, at least one.
        share: between 0 and 1.

    Returns:
        The value.
    """
    return values[max(0, min(len(values) - 1, -int(-share * len(values) // 1) - 1))]


def sections(found: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[Section]:
    """The report's tables.

    Args:
        found: from `summarise`.
        options: the benchmark's.

    Returns:
        Throughput, latency, batches.
    """
    return [_throughput(found, options), _latency(found), _batches(found, options)]


def _throughput(found: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Section:
    rows = []
    for entry in found:
        handle, http = entry["handle"], entry["http"]
        target = ""
        if entry["callers"] == TARGET_CALLERS:
            target = f"≥ {TARGET:g}: {'met' if handle['ratio'] >= TARGET else 'missed'}"
        cells = [number(entry[way]["images_per_s"]) for way in ("process", "handle")]
        rows.append(
            (
                _who(entry), *cells, f"{handle['ratio']:.2f}", target, number(http["images_per_s"]),
                f"{http['ratio']:.2f}",
            )
        )  # fmt: skip
    note = (
        f"Reward `{options['reward']}` with {options['reward_replicas']} replica of {options['reward_threads']} "
        f"thread, forward passes of {options['batch_size']} images; pictures of 64 × 64 pixels. In process: one "
        "process with as many threads that scores the images of all callers in one call, so nobody waits and little "
        "is padding. Handle: calls of the process are gathered as the router gathers them, and images go into the "
        "object store, of which the request has the reference (64 KiB and less travel with it). HTTP: PNG, "
        f"base64 in JSON. Medians over {options['turns']} turns of {options['seconds']:g} s; ratios are taken turn by "
        "turn."
    )
    header = ("callers × images a call", "in process", "handle", "ratio", "target", "HTTP", "ratio ")
    return Section("Images a second", header, rows, note)


def _latency(found: Sequence[Mapping[str, Any]]) -> Section:
    rows = []
    for entry in found:
        cells = [f"{1e3 * entry[way][key]:.0f}" for way in ("handle", "http") for key in ("p50_s", "p99_s")]
        costs = [
            number(entry[way][key]) if key in entry[way] else "-"
            for way in ("handle", "http") for key in ("server_cpu_ms", "caller_cpu_ms")
        ]  # fmt: skip
        rows.append((_who(entry), *cells, number(entry["process"]["caller_cpu_ms"]), *costs))
    header = (
        "callers × images a call", "handle p50", "p99", "HTTP p50", "p99 ", "CPU: process", "replica, handle",
        "caller, handle", "replica, HTTP", "caller, HTTP",
    )  # fmt: skip
    note = (
        "Milliseconds: how long a call takes, all turns together, and the CPU time of an image in the process, in the "
        "replica and in the caller. Time in Serve's proxy and in the gateway is not in these."
    )
    return Section("Latency and CPU time", header, rows, note)


def _batches(found: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Section:
    bounds = list(zip(SIZES, [*(size - 1 for size in SIZES[1:]), None], strict=True))
    names = [f"{low}" if low == high else f"{low}–{high}" if high else f"{low} and more" for low, high in bounds]
    rows = []
    for entry in found:
        for way in ("handle", "http"):
            counts = entry[way].get("batch_images", {})
            if not counts:
                continue
            total, images = sum(counts.values()), sum(size * count for size, count in counts.items())
            padded = sum(count * -(-size // options["batch_size"]) for size, count in counts.items())
            shares = [
                sum(count for size, count in counts.items() if low <= size <= (high or size)) / total
                for low, high in bounds
            ]
            rows.append(
                (
                    f"{_who(entry)}, {way}", number(images / total), *(f"{share:.0%}" for share in shares),
                    f"{images / (padded * options['batch_size']):.0%}",
                )
            )  # fmt: skip
    note = (
        f"Share of batches by the images in them, and how much of the forward passes of {options['batch_size']} was "
        "images, the rest being padding."
    )
    return Section("Batches", ("callers × images a call", "mean", *names, "filled"), rows, note)


def _who(entry: Mapping[str, Any]) -> str:
    return f"{entry['callers']} × {entry['images_per_call']}"


def heading(load: float, quick: bool, seconds: float) -> str:
    """What stands above the tables.

    Args:
        load: load average before the benchmark.
        quick: whether it was a quick look.
        seconds: how long it took.

    Returns:
        One paragraph.
    """
    from rayjobs import machine

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model n")]
    kind = "A quick look, too short for conclusions; it" if quick else "The benchmark"
    return (
        f"Measured on {(models or [platform.machine()])[0]}, {machine.cpus()} cores, Python "
        f"{platform.python_version()}. {kind} took {seconds:.0f} s; before it {load:.1f} processes were running (load "
        f"average of a minute), at its end {os.getloadavg()[0]:.1f}."
    )


def split_page(path: Path) -> tuple[str, str]:
    """What stands before and after the marked part of a page.

    Args:
        path: the page.

    Returns:
        Both, without the markers.

    Raises:
        ValueError: if the page has not exactly one of each marker, in order.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after or END in before:
        raise ValueError(f"{path} needs one line {BEGIN} and, below it, one line {END}")
    return before, after


def write_page(path: Path, contents: str) -> None:
    """Replace what stands between the two marker comments of a page.

    Args:
        path: the page.
        contents: what stands there afterwards.

    Raises:
        ValueError: if the page has not exactly one of each, in order.
    """  # noqa: DOC502
    before, after = split_page(path)
    path.write_text(f"{before}{BEGIN}\n\n{contents}\n\n{END}{after}", encoding="utf-8")
