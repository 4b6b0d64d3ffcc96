"""What a sweep found: a table with the best point first, its configuration, a heat map, and reward against cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayjobs.commands import program
from rayjobs.errors import JobError
from rayjobs.runtime.state import last_line
from rayjobs.sweeping.plots import heat_map, reward_against_nfe
from rayjobs.sweeping.space import Point, label, run_name
from rayjobs.sweeping.trial import SUMMARY, of_config
from sharpening.evaluation.files import write_bytes, write_json, write_parquet
from sharpening.evaluation.metrics import read_metrics
from sharpening.evaluation.run_folder import RunFolder
from sharpening.evaluation.statistics import Interval, interval

TABLE, RESULTS, BEST = "table.md", "results.parquet", "best.json"
HEAT_MAP, CURVES = "heat_map.png", "reward_nfe.png"


class SweepFailed(JobError):
    """No run of a sweep came to its end."""


@dataclass(frozen=True)
class RunResult:
    """How one run ended.

    Attributes:
        point: values of what is varied.
        seed: its seed.
        folder: its run folder.
        summary: its `summary.json`; `None` unless it came to its end.
        error: what it failed of, if it did.
    """

    point: Point
    seed: int
    folder: Path
    summary: Mapping[str, Any] | None
    error: str

    @property
    def status(self) -> str:
        """Whether it is finished, failed, or was stopped early."""
        return "finished" if self.summary else "failed" if self.error else "stopped early"

    @property
    def gain(self) -> Interval | None:
        """Reward of held-out images, after minus before, over its prompts."""
        if self.summary is None:
            return None
        return Interval(**self.summary["metrics"]["reward"]["difference"])

    def curve(self) -> tuple[list[float], list[float]]:
        """Network evaluations of the training in millions, and held-out reward, at each of its looks."""
        spent, total = {0: 0.0}, 0.0
        for row in read_metrics(self.folder):
            total += row["nfe"] + row.get("nfe_learn", 0)
            spent[int(row["update"]) + 1] = total / 1e6
        looks = RunFolder(self.folder).validation()
        known = [look for look in looks if look["reward"] is not None and look["update"] in spent]
        return [spent[look["update"]] for look in known], [look["reward"] for look in known]


@dataclass(frozen=True)
class PointResult:
    """What the runs of one point found.

    Attributes:
        point: values of what is varied.
        runs: its runs, a seed each.
        gain: mean over seeds of the finished runs; with one of them, over its prompts.
    """

    point: Point
    runs: tuple[RunResult, ...]
    gain: Interval | None

    @property
    def status(self) -> str:
        """How its runs ended, in words."""
        states = [run.status for run in self.runs]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def ended(config: Mapping[str, Any], error: BaseException | None, runs: Path) -> RunResult:
    """Look at what a run left.

    Args:
        config: its trial's configuration.
        error: what its trial failed of, if it did.
        runs: folder of the runs.

    Returns:
        How it ended.
    """
    point, seed = of_config(config)
    folder = runs / run_name(point, seed)
    path = folder / SUMMARY
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return RunResult(point, seed, folder, summary, "" if error is None or summary else last_line(error))


def ranked(runs: Sequence[RunResult]) -> list[PointResult]:
    """Runs by point.

    Args:
        runs: the runs.

    Returns:
        The points, the one with the highest mean gain first, those without a finished run last. A run that several
        trials asked for counts once.
    """
    by_point: dict[str, list[RunResult]] = {}
    for run in {run.folder: run for run in runs}.values():
        by_point.setdefault(label(run.point), []).append(run)
    found = []
    for own in by_point.values():
        gains = [run.gain for run in own if run.gain]
        gain = gains[0] if len(gains) == 1 else interval([gain.mean for gain in gains]) if gains else None
        found.append(PointResult(own[0].point, tuple(own), gain))
    return sorted(found, key=lambda result: -result.gain.mean if result.gain else float("inf"))


def write_report(folder: Path, runs: Sequence[RunResult], names: Sequence[str], command: str) -> str:
    """Write everything that a sweep leaves beside its runs.

    Args:
        folder: the sweep's folder.
        runs: how they ended.
        names: what is varied.
        command: how the sweep was called.

    Returns:
        The table and where the rest is, for the terminal.

    Raises:
        SweepFailed: if no run came to its end; what there is to tell is written all the same.
    """
    points = ranked(runs)
    table = markdown(points, names)
    failures = [f"- {label(run.point)} seed={run.seed}: {run.error}" for run in runs if run.error]
    parts = [f"`{command}`", table, _how(points), *(["Failed runs:", "\n".join(failures)] if failures else [])]
    write_bytes(folder / TABLE, "\n\n".join(parts).encode() + b"\n")
    write_parquet(folder / RESULTS, _columns(runs, names))
    finished = [result for result in points if result.gain]
    if not finished:
        reasons = "; ".join(dict.fromkeys(run.error for run in runs if run.error)) or "all were stopped"
        raise SweepFailed(f"no run came to its end ({reasons}); {folder / TABLE} lists them, --resume tries again")
    best = next(run for run in finished[0].runs if run.summary)
    best_config = RunFolder(best.folder).config()
    write_json(folder / BEST, best_config)
    varied = [name for name in names if len({result.point[name] for result in finished}) > 1]
    if len(varied) > 1:
        write_bytes(folder / HEAT_MAP, heat_map(finished, varied[0], varied[1]))
    curves = {f"{label(run.point)} seed={run.seed}": run.curve() for result in points for run in result.runs}
    write_bytes(folder / CURVES, reward_against_nfe({name: curve for name, curve in curves.items() if curve[0]}))
    lines = [table, "", f"best: python rayjobs/{program(best_config['method'])} --config {folder / BEST}"]
    lines += [f"failed: {line.removeprefix('- ')}" for line in failures]
    return "\n".join([*lines, f"sweep folder: {folder}"])


def markdown(points: Sequence[PointResult], names: Sequence[str]) -> str:
    """The table.

    Args:
        points: from `ranked`.
        names: what is varied.

    Returns:
        A Markdown table, a row a point.
    """
    header = [*names, "reward, before", "after", "gain", "95 %", "training NFE", "runs"]
    rows = []
    for result in points:
        own = [run.summary for run in result.runs if run.summary]
        cells = [f"{result.point[name]:g}" for name in names]
        if result.gain:
            before, after = (
                sum(summary["metrics"]["reward"][when]["mean"] for summary in own) / len(own)
                for when in ("before", "after")
            )
            nfe = sum(summary["nfe"] for summary in own) / len(own)
            gain = result.gain
            cells += [f"{before:.2f}", f"{after:.2f}", f"{gain.mean:+.2f}", f"{gain.low:+.2f}, {gain.high:+.2f}"]
            cells += [f"{nfe:,.0f}"]
        else:
            cells += [""] * 5
        rows.append([*cells, result.status])
    lines = [header, ["--:"] * (len(header) - 1) + ["---"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _how(points: Sequence[PointResult]) -> str:
    """What the interval is over."""
    seeds = max(len(result.runs) for result in points)
    over = f"the runs of {seeds} seeds" if seeds > 1 else "the prompts of one run, not over runs: pass more --seeds"
    return (
        "Gain: mean reward of held-out images, after minus before training, on the same prompts and noise for all "
        f"runs. The interval is over {over}. The best of many points looks better than it is: run it again with other "
        "seeds."
    )


def _columns(runs: Sequence[RunResult], names: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [run.point[name] for run in runs] for name in names}
    columns |= {"seed": [run.seed for run in runs], "status": [run.status for run in runs]}
    for end in ("mean", "low", "high"):
        columns[f"gain_{end}"] = [getattr(run.gain, end) if run.gain else None for run in runs]
    columns["nfe"] = [run.summary["nfe"] if run.summary else None for run in runs]
    columns["seconds"] = [run.summary["seconds"] if run.summary else None for run in runs]
    columns["folder"] = [run.folder.name for run in runs]
    columns["error"] = [run.error for run in runs]
    return columns
