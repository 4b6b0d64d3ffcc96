"""`summary.json`: the comparison for programs, by method and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sharpening.evaluation.comparison.divergence import Divergence, divergences
from sharpening.evaluation.comparison.ranks import agreements
from sharpening.evaluation.comparison.records import SystemCost
from sharpening.evaluation.comparison.results import ComparisonResults
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import main_settings
from sharpening.evaluation.comparison.systems import SYSTEMS
from sharpening.evaluation.comparison.tables import Row, main_table
from sharpening.evaluation.comparison.verdicts import Claim, Verdict, claims, verdicts

SCHEMA = 1


def summarise(results: ComparisonResults, scores: Scores, missing: Mapping[str, str]) -> dict[str, Any]:
    """Contents of `summary.json`.

    Args:
        results: everything measured.
        scores: its judgements.
        missing: reason by part that is missing.

    Returns:
        `methods.NAME.METRIC.{mean,low,high,seeds,prompts,nfe,seconds,difference,verdict}`, where `nfe` is denoiser
        evaluations an image and `seconds` wall seconds of training; `costs.NAME`, `claims`, `verdicts`, `ranks`,
        `diversity`, `alarms.NAME.SCALE.{status,reward,verifiers}`, `missing`, and what it was run with.
    """
    settings = main_settings(results, scores)
    found = verdicts(settings, scores, results.overall)
    table = main_table(results, scores)
    return {
        "schema": SCHEMA,
        "methods": {row.setting.system: _metrics(row) for row in table.rows},
        "costs": {row.setting.system: _cost(row) for row in table.rows},
        "budgets": _budgets(results.costs),
        "overall": results.overall,
        "claims": [_claim(one) for one in claims(results, settings, found)],
        "verdicts": [_verdict(one) for one in found],
        "ranks": {column: asdict(one) for column, one in agreements(settings, scores).items()},
        "diversity": {
            name: {"frechet": asdict(one.frechet), "spread": one.spread.as_dict()}
            for name, one in results.diversity.items()
        },
        "alarms": _alarms(divergences(scores, results.steps)),
        "trials": [asdict(one) for one in results.trials],
        "missing": dict(missing),
        "guidance_scale": results.guidance_scale,
        "steps": results.steps,
        "search_multiple": results.search_multiple,
        "command": results.command,
        "commit": results.commit,
        "machine": results.machine,
    }


def _metrics(row: Row) -> dict[str, Any]:
    seconds = row.cost["training_seconds"] if row.cost else None
    found = {}
    for column, cell in row.cells.items():
        if cell.value is None:
            continue
        difference = cell.difference
        found[column] = cell.value.as_dict() | {
            "nfe": row.setting.nfe,
            "seconds": seconds,
            "difference": difference.as_dict() if difference else None,
            "verdict": difference.word if difference else None,
        }
    return found


def _cost(row: Row) -> dict[str, Any]:
    kind = SYSTEMS[row.setting.system].kind
    return {"kind": kind, "nfe_per_image": row.setting.nfe, **(row.cost or {"unknown": True})}


def _budgets(costs: Sequence[SystemCost]) -> dict[str, list[int]]:
    """NFE an image that each search was run with."""
    found: dict[str, set[int]] = {}
    for cost in costs:
        if cost.kind == "search":
            found.setdefault(cost.system, set()).add(cost.nfe_per_image)
    return {name: sorted(budgets) for name, budgets in found.items()}


def _alarms(found: Sequence[Divergence]) -> dict[str, dict[str, Any]]:
    """Reward and verifiers against the base model, by system and guidance scale."""
    by_system: dict[str, dict[str, Any]] = {}
    for one in found:
        by_system.setdefault(one.system, {})[f"{one.guidance_scale:g}"] = one.as_dict()
    return by_system


def _claim(one: Claim) -> dict[str, Any]:
    return {"text": one.text, "holds": one.holds, "reason": one.reason}


def _verdict(one: Verdict) -> dict[str, Any]:
    return {
        "system": one.system, "other": one.other, "metric": one.column, **one.difference.as_dict(),
        "verdict": one.word, "intervals_apart": one.apart, "sentence": one.sentence,
    }  # fmt: skip
