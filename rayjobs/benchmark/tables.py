"""From numbers to tables: for a terminal and, between two markers, for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayjobs.benchmark.report import LEARNER_STAGES, ROLLOUT_STAGES

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MIB = 2**20


@dataclass(frozen=True)
class Section:
    """One table of the report.

    Attributes:
        title: what it is about.
        header: column names; the first column is left-aligned.
        rows: cells.
        note: what exactly was compared.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 2 - _magnitude(value)
    return f"{value:.{max(0, digits)}f}"


def _magnitude(value: float) -> int:
    return int(f"{abs(value):e}".split("e")[1])


def _target(found: Mapping[str, Any], sign: str = "≥") -> str:
    return f"{sign} {found['target']:g}: {'met' if found['met'] else 'missed'}"


def sections(found: Mapping[str, Any], context: Mapping[str, Any]) -> list[Section]:
    """The report's tables.

    Args:
        found: from `summarise`.
        context: `setting` (a sentence on the job's options), `threads`, `updates`, `turns`.

    Returns:
        One section for each part that was measured.
    """
    parts = []
    if "throughput" in found:
        parts += [_throughput(found, context), _share(found)]
    if "memory" in found:
        parts.append(_memory(found))
    if "rates" in found:
        parts += [_timesteps(found["rates"]), _yardstick_table(found)]
    return parts


def _throughput(found: Mapping[str, Any], context: Mapping[str, Any]) -> Section:
    ray, loop = found["throughput"]["ray"], found["throughput"]["loop"]
    turns = ", ".join(number(value) for value in found["ray_fraction"]["turns"])
    rows: list[tuple[str, ...]] = []
    for name in ("updates", "prompts", "pairs", "images_scored"):
        target = _target(found["ray_fraction"]) if name == "updates" else ""
        label = f"{name.replace('_', ' ')}/s"
        rows.append((label, number(ray[name]), number(loop[name]), number(ray[name] / loop[name]), target))
    first = [number(sum(found["seconds_first_update"][side]) / context["turns"]) for side in ("ray", "loop")]
    rows.append(("first update, s (not counted)", *first, "", ""))
    note = (
        f"{context['setting']} Both sides make the same updates on the same prompts and seeds, on the same cores with "
        f"{context['threads']} torch threads at a time. {context['turns']} turns each, by turns; "
        f"{context['updates']} updates a turn, of which the first does not count. Ratio by turn: {turns}."
    )
    return Section("Throughput", ("", "Ray job", "one process", "ratio", "target"), rows, note)


def _share(found: Mapping[str, Any]) -> Section:
    ray, loop = found["share"]["ray"], found["share"]["loop"]
    rows: list[tuple[str, ...]] = []
    for title, stages in (("rollout", ROLLOUT_STAGES), ("learner", LEARNER_STAGES)):
        for stage in stages:
            rows.append((f"{title}: {stage}", *(f"{s[stage]:.1%}" if stage in s else "-" for s in (ray, loop))))
        rest = 1 - sum(ray.get(stage, 0.0) for stage in stages)
        rows.append((f"{title}: {'idle and hand-over' if title == 'rollout' else 'other'}", f"{rest:.1%}", "-"))
    rest = 1 - sum(loop.values())
    rows.append(("other", "-", f"{rest:.1%}"))
    note = (
        "Of an update's wall time. In the Ray job the rollout stages are a mean over actors and, with the line below "
        "them, make 100 %; so do the learner's: it waits while the actors roll out. In one process all stages do."
    )
    return Section("Share of time", ("stage", "Ray job", "one process"), rows, note)


def _memory(found: Mapping[str, Any]) -> Section:
    by_name, growth = found["memory"]["bytes"], found["memory"]["growth"]
    sizes = sorted(next(iter(by_name.values())), key=int)
    labels = {"peak": "peak resident, MiB", "cuda": "peak of torch's CUDA allocations, MiB"}
    rows: list[tuple[str, ...]] = []
    for name, by_n in by_name.items():
        if name == "sharpening":
            loaded = [by_n[n]["loaded"] for n in sizes]
            rows.append((f"{name}: model loaded, MiB", *(number(value / MIB) for value in loaded), "", ""))
        for kind, label in labels.items():
            if kind in growth[name]:
                cells = (number(by_n[n][kind] / MIB) for n in sizes)
                decides = name == "sharpening" and kind == found["memory"]["decides"]
                target = _target(found["memory"], "≤") if decides else ""
                rows.append((f"{name}: {label}", *cells, f"{growth[name][kind]:.3f}", target))
    note = (
        "A fresh process each, which loads the model, and learns twice from an experience that another process "
        "collected with n branches (8 prompts)."
    )
    if "public order" in by_name:
        note += " Below it the public code's order (see the last table), which keeps every branch's graph."
    if found.get("peak_memory_ray_learner"):
        note += f" The Ray job's learner peaked at {number(found['peak_memory_ray_learner'] / MIB)} MiB."
    return Section("Learner's memory", ("", *(f"n = {n}" for n in sizes), "growth", "target"), rows, note)


def _timesteps(by_name: Mapping[str, Mapping[str, Any]]) -> Section:
    one, four = by_name["K=1"], by_name["K=4"]
    rows: list[tuple[str, ...]] = [
        (f"{name}/s", number(one[name]), number(four[name]), number(four[name] / one[name]))
        for name in ("pairs", "prompts", "updates")
    ]
    rows.append(("wall time, s", number(one["wall"]), number(four["wall"]), ""))
    note = "In one process, update by update, n = 3."
    if "reward" in one and "reward" in four:
        changes = [entry["reward"] for entry in (one, four)]
        cells = [f"{c['mean']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]" for c in changes]
        rows.append(("change of the reward", *cells, ""))
        note += (
            f" The reward is that of {changes[0]['prompts']} held-out prompts at fixed noise against the base "
            f"({changes[0]['before']:.2f}), with 95 % intervals; so short a training says little about it."
        )
    return Section("Timesteps per rollout, at equal wall time", ("", "K = 1", "K = 4", "ratio"), rows, note)


def _yardstick_table(found: Mapping[str, Any]) -> Section:
    yardstick, by_name = found["yardstick"], found["rates"]
    base = by_name["public order"]
    rows: list[tuple[str, ...]] = [("public order", number(base["prompts"]), number(base["pairs"]), "1", "1", "")]
    for name, ratio in yardstick["ratios"].items():
        target = ""
        if name == "K=1":
            target = f"prompts {_target(yardstick['prompts_at_k1'])}"
        elif name == "K=4":
            target = f"pairs {_target(yardstick['pairs_at_k4'])}"
        rates_of = [number(by_name[name][kind]) for kind in ("prompts", "pairs")]
        rows.append((f"ours, {name}", *rates_of, number(ratio["prompts"]), number(ratio["pairs"]), target))
    theirs, ours = base.get("options", {}), by_name["K=1"].get("options", {})
    note = (
        "In one process, update by update in turn. Public order: fp32, one prompt an update, "
        f"n = {theirs.get('branches')}, m = {theirs.get('branch_steps')}, {theirs.get('rollout_steps')} sampler steps, "
        "K = 1; all n·m evaluations and decodes keep their graphs, the backward pass goes through every branch, the "
        "reference is evaluated by itself; its reward's batches are not padded. "
        f"Ours: the in-process loop with the job's options and the same n, m = {ours.get('branch_steps')} and "
        f"{ours.get('rollout_steps')} steps, an update's prompts rolled out together, in "
        f"{ours.get('rollout_precision', 'fp32')}; in the last two lines with the public order's m and steps as well. "
        "Everybody has prompts of its own to embed."
    )
    if "ray_fraction" in found:
        note += f" As a Ray job ours reach {found['ray_fraction']['value']:.2f} of these rates."
    header = ("update", "prompts/s", "pairs/s", "× prompts/s", "× pairs/s", "target")
    return Section("Against the public code's order", header, rows, note)


def text_table(parts: Sequence[Section], heading: str) -> str:
    """The report for a terminal.

    Args:
        parts: the sections.
        heading: lines above them.

    Returns:
        Aligned lines.
    """
    lines = [heading]
    for part in parts:
        cells = [part.header, *part.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(part.header))]
        lines += ["", part.title]
        for place, row in enumerate(cells):
            first, *rest = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            lines.append("  ".join([first, *rest]).rstrip())
            if place == 0:
                lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def markdown(parts: Sequence[Section], heading: str) -> str:
    """The report for a page.

    Args:
        parts: the sections.
        heading: a paragraph above them.

    Returns:
        Markdown.
    """
    blocks = [heading]
    for part in parts:
        head = ["| " + " | ".join(part.header) + " |", "|---" + "|--:" * (len(part.header) - 1) + "|"]
        rows = ["| " + " | ".join(row) + " |" for row in part.rows]
        blocks += [f"### {part.title}", part.note, "\n".join(head + rows)]
    return "\n\n".join(blocks)


def write_between_markers(path: Path, contents: str) -> None:
    """Replace what stands between the two marker comments of a page.

    Args:
        path: the page.
        contents: what stands there afterwards.

    Raises:
        ValueError: if the page has not exactly one of each, in order.
    """
    before, after = split_at_markers(path)
    path.write_text(f"{before}{BEGIN}\n\n{contents}\n\n{END}{after}", encoding="utf-8")


def split_at_markers(path: Path) -> tuple[str, str]:
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
