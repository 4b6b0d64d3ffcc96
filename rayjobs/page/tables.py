"""The page's tables: the headline with its intervals, prompts that gained and lost, cost, faults, versions."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from typing import Any

from rayjobs.page.contents import Contents, Row
from rayjobs.page.numbers import fixed, seconds, size
from sharpening.evaluation.statistics import Comparison, Interval, compare, interval
from sharpening.evaluation.summary import METRICS, PromptResult, compare_results

PROMPTS = 8  # prompts shown of those that gained most, and of those that lost most
STAGES = {
    "generate": "rollouts: sampling whole images", "branch": "rollouts: a short way back into the noise and out again",
    "decode": "rollouts: latents to images", "reward": "rollouts: waiting for scores",
    "reference": "rollouts: the frozen reference", "wait": "learner: waiting for experience",
    "learn": "learner: forward, backward and optimiser", "publish": "learner: new weights on their way",
    "evaluate": "held-out prompts: drawing", "evaluate_score": "held-out prompts: scoring and verifying",
    "rollout": "rollouts: the policy", "rank": "ranking pairs",
}  # fmt: skip
ROLES = {
    "rollout": "an actor", "learner": "a rank", "driver": "the job's own process", "rollout_gpu": "an actor's device",
    "learner_gpu": "a rank's device",
}  # fmt: skip
FAULTS = ("restart", "lost", "dropped", "alarm", "stop", "reward")


@dataclass(frozen=True)
class Line:
    """One metric of the headline table.

    Attributes:
        name: The metric's name.
        overall: Whether it is over all prompts, not one category's.
        before: Mean before, or empty.
        after: Mean after, or empty.
        difference: Mean of the prompts' differences.
        interval: Its 95 % interval in brackets.
        verdict: `up`, `down`, or empty where the interval holds zero.
        bar: Left end, mean and right end of the interval, and zero, in per cent of the column's width.
    """

    name: str
    overall: bool
    before: str
    after: str
    difference: str
    interval: str
    verdict: str
    bar: tuple[float, float, float, float]


@dataclass(frozen=True)
class Block:
    """The headline at one guidance scale.

    Attributes:
        title: What it is.
        own: Whether the model was trained for this scale.
        lines: A line a metric.
    """

    title: str
    own: bool
    lines: list[Line]


@dataclass(frozen=True)
class Bar:
    """One bar of the cost account.

    Attributes:
        name: What it is of.
        about: A few words on it.
        text: Its value.
        share: Its length, in per cent of the longest.
    """

    name: str
    about: str
    text: str
    share: float


def results(contents: Contents) -> list[PromptResult]:
    """Rows of the evaluation; columns that the page does not know are left out.

    Args:
        contents: The run.

    Returns:
        One a prompt, phase and guidance scale.
    """
    known = [f.name for f in fields(PromptResult)]
    return [PromptResult(**{name: row[name] for name in known if name in row}) for row in contents.evaluation]


def headline(contents: Contents) -> list[Block]:
    """The final table, with its intervals drawn.

    Args:
        contents: The run.

    Returns:
        A block a guidance scale, the model's own first with every category; none before both evaluations are there.
    """
    rows, own = results(contents), contents.guidance_scale
    blocks = []
    for scale in sorted({row.guidance_scale for row in rows}, key=lambda value: (value != own, value)):
        found = compare_results(rows, scale)
        further = _further_rewards(contents.evaluation, scale) if found else {}
        shown = {name: c for name, c in (found | further).items() if scale == own or name in (*METRICS, *further)}
        if not shown:
            continue
        prompts = max(c.prompts for c in shown.values())
        title = f"Guidance {scale:g}{', as trained' if scale == own else ''}: {prompts} prompts"
        blocks.append(Block(title, scale == own, _lines(shown, further)))
    return blocks


def _further_rewards(rows: list[Row], scale: float) -> dict[str, Comparison]:
    """Comparisons of rewards that have a column of their own beside the headline's."""
    names = sorted({name for row in rows for name in row if name.startswith("reward_")})
    found = {}
    for name in names:
        sides: dict[str, dict[int, float]] = {"before": {}, "after": {}}
        for row in rows:
            if row["guidance_scale"] == scale and row.get(name) is not None:
                sides[row["phase"]][row["index"]] = row[name]
        both = [index for index in sides["before"] if index in sides["after"]]
        if len(both) >= 2:
            found[name] = compare([sides["before"][i] for i in both], [sides["after"][i] for i in both])
    return found


def _lines(comparisons: dict[str, Comparison], further: Collection[str]) -> list[Line]:
    """Lines whose bars share a scale where they share a unit: the headline, shares, each further reward."""
    kinds = {name: name if name in further else name.partition("_")[0] for name in comparisons}
    ends: dict[str, float] = {}
    for name, comparison in comparisons.items():
        kind = kinds[name]
        low, high = comparison.difference.low, comparison.difference.high
        ends[kind] = max(ends.get(kind, 1e-12), abs(low), abs(high))
    ends["facts"] = ends["all"] = max(ends.get("facts", 0), ends.get("all", 0))
    return [_line(name, comparison, ends[kinds[name]]) for name, comparison in comparisons.items()]


def _line(name: str, comparison: Comparison, end: float) -> Line:
    before, after, difference = comparison.before.mean, comparison.after.mean, comparison.difference
    decimals = 3 if max(abs(before), abs(after)) <= 1.5 else 2

    def place(value: float) -> float:
        return round(50 + 46 * value / end, 2)

    return Line(
        name.replace("_", " "), name in METRICS, fixed(before, decimals), fixed(after, decimals),
        fixed(difference.mean, decimals, sign=True), brackets(difference, decimals), verdict(difference),
        (place(difference.low), place(difference.mean), place(difference.high), place(0.0)),
    )  # fmt: skip


def brackets(found: Interval, decimals: int) -> str:
    """An interval's ends in brackets."""
    return f"[{fixed(found.low, decimals, sign=True)}, {fixed(found.high, decimals, sign=True)}]"


def verdict(difference: Interval) -> str:
    """`up`, `down`, or empty where the interval holds zero."""
    return "" if not difference.excludes_zero else "up" if difference.mean > 0 else "down"


def base_model(contents: Contents) -> str:
    """What is known of the base model while the evaluation after training is not there.

    Args:
        contents: The run.

    Returns:
        A sentence; empty where nothing was evaluated, or the headline says more.
    """
    rows = [row for row in results(contents) if row.guidance_scale == contents.guidance_scale]
    rewards = [row.reward for row in rows if row.phase == "before" and row.reward is not None]
    if len(rewards) < 2 or any(row.phase == "after" for row in rows):
        return ""
    found = interval(rewards)
    ends = f"[{fixed(found.low, 2)}, {fixed(found.high, 2)}]"
    return f"The base model's reward on {len(rewards)} held-out prompts is {fixed(found.mean, 2)} {ends}."


def movers(contents: Contents) -> dict[str, list[dict[str, str]]]:
    """Prompts that gained most and lost most, at the model's own guidance.

    Args:
        contents: The run.

    Returns:
        `gained` and `lost`: prompt, category, reward before and after, difference, and facts before and after.
    """
    sides: dict[str, dict[int, PromptResult]] = {"before": {}, "after": {}}
    for row in results(contents):
        if row.guidance_scale == contents.guidance_scale and row.reward is not None:
            sides[row.phase][row.index] = row
    pairs = [(row, sides["after"][index]) for index, row in sides["before"].items() if index in sides["after"]]
    moved = [((b.reward or 0.0) - (a.reward or 0.0), a, b) for a, b in pairs]
    moved.sort(key=lambda entry: entry[0])
    gained = [entry for entry in reversed(moved) if entry[0] > 0][:PROMPTS]
    lost = [entry for entry in moved if entry[0] < 0][:PROMPTS]
    return {"gained": [_moved(*entry) for entry in gained], "lost": [_moved(*entry) for entry in lost]}


def _moved(gain: float, before: PromptResult, after: PromptResult) -> dict[str, str]:
    facts = "" if before.facts is None or after.facts is None else f"{before.facts:.2f} → {after.facts:.2f}"
    return {
        "prompt": before.prompt, "category": before.category, "difference": fixed(gain, 2, sign=True), "facts": facts,
        "reward": f"{fixed(before.reward or 0.0, 2)} → {fixed(after.reward or 0.0, 2)}",
    }  # fmt: skip


def cost_bars(cost: Row) -> dict[str, list[Bar]]:
    """The cost account as bars.

    Args:
        cost: What `cost.json` holds.

    Returns:
        `nfe`, `seconds` and `memory`; empty lists where nothing was counted.
    """
    evaluations = {k: v for k, v in cost.get("nfe", {}).items() if k not in ("training", "total") and v}
    spent = {k: v for k, v in cost.get("seconds", {}).items() if k != "wall" and v}
    memory = cost.get("peak_memory_bytes", {})
    return {
        "nfe": _bars(evaluations.items(), lambda value: fixed(value, 0)),
        "seconds": _bars(sorted(spent.items(), key=lambda item: -item[1]), seconds),
        "memory": _bars(sorted(memory.items(), key=lambda item: -item[1]), size, ROLES),
    }


def _bars(items: Iterable[tuple[str, float]], word: Any, about: dict[str, str] = STAGES) -> list[Bar]:
    pairs = list(items)
    longest = max((value for _, value in pairs), default=0) or 1
    return [
        Bar(name.replace("_", " "), about.get(name, ""), word(value), round(100 * value / longest, 2))
        for name, value in pairs
    ]


def dropped_by_reason(contents: Contents) -> dict[str, int]:
    """Prompts that were dropped, by reason.

    Args:
        contents: The run.

    Returns:
        Numbers by reason, the largest first. Events count updates made again, metrics do not; where neither tells the
        reason it is `unknown`.
    """
    told: Counter[str] = Counter()
    for event in contents.events:
        if event["kind"] == "dropped" and isinstance(event.get("reasons"), dict):
            told.update(event["reasons"])
    if not told:
        for row in contents.rows:
            own = {k.removeprefix("dropped_"): v for k, v in row.items() if k.startswith("dropped_") and v}
            told.update({k.replace("_", " "): v for k, v in own.items()})
            if not own and row.get("dropped"):
                told["unknown"] += row["dropped"]
    return dict(told.most_common())


def faults(contents: Contents) -> dict[str, Any]:
    """What the run survived.

    Args:
        contents: The run.

    Returns:
        `rollout` and `learner` restarts, `dropped` prompts by reason, `alarms` (looks with the alarm), and `calm`:
        whether there was nothing of it.
    """
    newest = contents.rows[-1] if contents.rows else {}
    events = Counter((event["kind"], event.get("role")) for event in contents.events)
    restarts = {
        role: max(int(newest.get(f"restarts_{role}") or 0), events["restart", role]) for role in ("rollout", "learner")
    }
    alarms = [look["update"] for look in contents.looks if look.get("alarm")]
    dropped = dropped_by_reason(contents)
    grave = any(event["kind"] in FAULTS for event in contents.events)
    calm = not (any(restarts.values()) or alarms or dropped or grave)
    return {**restarts, "dropped": dropped, "alarms": alarms, "calm": calm}


def versions(contents: Contents) -> dict[str, str]:
    """What the run ran on, by name.

    Args:
        contents: The run.

    Returns:
        Python, project, platform, then every package.
    """
    found = dict(contents.versions)
    packages = found.pop("packages", {})
    commit = found.pop("commit", None)
    changed = " with uncommitted changes" if found.pop("changed", False) else ""
    told = {"python": found.pop("python", None), "this project's commit": commit and f"{commit}{changed}", **found}
    return {name: str(value) for name, value in {**told, **packages}.items() if value is not None}
