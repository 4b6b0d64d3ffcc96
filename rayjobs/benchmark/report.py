"""From measurements to numbers; pure functions of plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

ROLLOUT_STAGES = ("generate", "branch", "decode", "reward", "reference")
LEARNER_STAGES = ("wait", "learn", "publish")
STAGES = (*ROLLOUT_STAGES, *LEARNER_STAGES)

FRACTION_TARGET = 0.85  # Ray job's throughput over the in-process loop's
MEMORY_TARGET = 1.02  # the learner's peak at n = 8 over n = 3; what is above 1 is the allocator's
PROMPTS_TARGET, PAIRS_TARGET = 5.0, 15.0  # ours over the yardstick: prompt-updates/s at K = 1, pairs/s at K = 4


def steady(turns: Sequence[Sequence[Row]]) -> list[Row]:
    """The updates that count: all but the first of each turn, which pays for starting up.

    Args:
        turns: rows of each turn's updates, in order.

    Returns:
        The rows of all turns.
    """
    return [row for turn in turns for row in turn[1:]]


def throughput(rows: Sequence[Row], prompts: int, pairs: int) -> dict[str, float]:
    """Rates over some updates: totals over the time they took.

    Args:
        rows: with `seconds` and `images_scored` each.
        prompts: prompts of an update.
        pairs: pairs of an update.

    Returns:
        `updates`, `prompts`, `pairs` and `images_scored`, each per second.
    """
    seconds = sum(row["seconds"] for row in rows)
    images = sum(row["images_scored"] for row in rows)
    count = len(rows)
    totals = {"updates": count, "prompts": count * prompts, "pairs": count * pairs, "images_scored": images}
    return {name: total / seconds for name, total in totals.items()}


def shares(rows: Sequence[Row]) -> dict[str, float]:
    """Each stage's share of the time that updates took.

    Args:
        rows: with `seconds`, and `seconds_STAGE` for the stages that there are; a rollout stage's is a mean over
            actors, so the rollout stages alone add up to at most 1, and so do the learner's.

    Returns:
        Share by stage; stages that nobody measured are left out.
    """
    seconds = sum(row["seconds"] for row in rows)
    names = [stage for stage in STAGES if any(f"seconds_{stage}" in row for row in rows)]
    return {stage: sum(row.get(f"seconds_{stage}", 0.0) for row in rows) / seconds for stage in names}


def fractions(ours: Sequence[Sequence[Row]], theirs: Sequence[Sequence[Row]]) -> list[float]:
    """Updates/s of one side over the other's, turn by turn.

    Args:
        ours: rows of each turn.
        theirs: rows of each turn, of the same updates.

    Returns:
        One number a turn.
    """
    pairs = zip(ours, theirs, strict=True)
    return [throughput(steady([a]), 1, 1)["updates"] / throughput(steady([b]), 1, 1)["updates"] for a, b in pairs]


def rates(found: Mapping[str, Any]) -> dict[str, float]:
    """Rates of one contender.

    Args:
        found: its `seconds` (of each update), and `prompts` and `pairs` of an update.

    Returns:
        `updates`, `prompts` and `pairs` per second, and `wall`, the seconds it had.
    """
    wall = sum(found["seconds"])
    per_second = len(found["seconds"]) / wall
    prompts, pairs = per_second * found["prompts"], per_second * found["pairs"]
    return {"updates": per_second, "prompts": prompts, "pairs": pairs, "wall": wall}


def summarise(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of the report, for programs.

    Args:
        measured: what `rayjobs.bench` collected: `prompts_per_update`, `pairs_per_update` and, as far as measured,
            `ray` and `loop` (rows of each turn), `memory`, `rates`.

    Returns:
        `throughput`, `share`, `ray_fraction`, `memory`, `rates`, `yardstick`; without the parts not measured.
    """
    found: dict[str, Any] = {}
    if "ray" in measured:
        sides = {"ray": measured["ray"], "loop": measured["loop"]}
        sizes = (measured["prompts_per_update"], measured["pairs_per_update"])
        found["throughput"] = {side: throughput(steady(turns), *sizes) for side, turns in sides.items()}
        found["share"] = {side: shares(steady(turns)) for side, turns in sides.items()}
        ratio = found["throughput"]["ray"]["updates"] / found["throughput"]["loop"]["updates"]
        found["ray_fraction"] = {
            "value": ratio, "turns": fractions(measured["ray"], measured["loop"]), "target": FRACTION_TARGET,
            "met": ratio >= FRACTION_TARGET,
        }  # fmt: skip
        found["seconds_first_update"] = {side: [turn[0]["seconds"] for turn in turns] for side, turns in sides.items()}
        found["peak_memory_ray_learner"] = max(
            int(row.get("peak_memory_learner", 0)) for turn in measured["ray"] for row in turn
        )
    if "memory" in measured:
        found["memory"] = {"bytes": measured["memory"], "growth": _memory_growth(measured["memory"])}
        growth = found["memory"]["growth"]["sharpening"]
        kind = "cuda" if "cuda" in growth else "peak"  # a learner on a GPU is short of that memory
        found["memory"] |= {"decides": kind, "target": MEMORY_TARGET, "met": growth[kind] <= MEMORY_TARGET}
    if "rates" in measured:
        found["rates"] = {name: rates(entry) | _extras(entry) for name, entry in measured["rates"].items()}
        found["yardstick"] = _yardstick(found["rates"])
    return found


def _extras(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("options", "reward") if name in entry}


def _memory_growth(memory: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, float]]:
    """The larger n's bytes over the smaller one's, by learner and kind of peak."""
    growth: dict[str, dict[str, float]] = {}
    for name, by_n in memory.items():
        small, large = (by_n[n] for n in sorted(by_n, key=int))
        growth[name] = {kind: large[kind] / small[kind] for kind in ("peak", "cuda") if small[kind]}
    return growth


def _yardstick(by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ours over the yardstick; the targets are for ours as the options are, at K = 1 and at K = 4."""
    base = by_name["public order"]
    ratios = {
        name: {kind: entry[kind] / base[kind] for kind in ("prompts", "pairs")}
        for name, entry in by_name.items() if name != "public order"
    }  # fmt: skip
    prompts, pairs = ratios["K=1"]["prompts"], ratios["K=4"]["pairs"]
    return {
        "ratios": ratios,
        "prompts_at_k1": {"value": prompts, "target": PROMPTS_TARGET, "met": prompts >= PROMPTS_TARGET},
        "pairs_at_k4": {"value": pairs, "target": PAIRS_TARGET, "met": pairs >= PAIRS_TARGET},
    }
