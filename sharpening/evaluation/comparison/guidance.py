"""Guidance: every model over the scales, each at its best one, and guided beside unguided at equal NFE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sharpening.evaluation.comparison.estimate import Estimate, difference, estimate
from sharpening.evaluation.comparison.records import Setting
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.systems import BASE, SYSTEMS

UNGUIDED = 1.0


@dataclass(frozen=True)
class GuidanceRow:
    """One model over the guidance scales.

    Attributes:
        system: the model.
        by_scale: estimate by scale.
        best: estimate at its best scale, which is chosen on other prompts than it is judged on.
        scales: the scales chosen on the two halves of the prompts.
        difference: its best against the base model's best; `None` for the base model.
        gains: against the base model at the same scale, by scale; empty for the base model.
    """

    system: str
    by_scale: dict[float, Estimate]
    best: Estimate | None
    scales: tuple[float, ...]
    difference: Estimate | None
    gains: dict[float, Estimate]


@dataclass(frozen=True)
class EqualCostRow:
    """One model at one cost an image, unguided with T steps or guided with T/2.

    Attributes:
        nfe: denoiser evaluations an image.
        system: the model.
        unguided: estimate without guidance; `None` where it was not run.
        guided: estimate at the best guided scale; `None` where it was not run.
        scales: the scales chosen on the two halves of the prompts.
        unguided_gain: unguided minus the base model's best guided, at the same cost.
        guided_gain: guided minus the base model's best guided; `None` for the base model.
    """

    nfe: int
    system: str
    unguided: Estimate | None
    guided: Estimate | None
    scales: tuple[float, ...]
    unguided_gain: Estimate | None
    guided_gain: Estimate | None


@dataclass(frozen=True)
class Best:
    """Scores at the best setting.

    Attributes:
        table: seeds down, prompts across; each prompt's score is from the setting that is best on the other half.
        scales: guidance scale that each half was judged at.
    """

    table: pd.DataFrame
    scales: tuple[float, ...]


def at_best(settings: Sequence[Setting], column: str, scores: Scores) -> Best:
    """Scores at the best of several settings, free of the luck of choosing it.

    The prompts are dealt into two halves by turns within the benchmark's order; each half is judged at the setting
    with the highest mean on the other, so that no number helps to choose the setting it is reported for.

    Args:
        settings: the choices; those without a score are passed over.
        column: a name of `COLUMNS`.
        scores: the judgements.

    Returns:
        The scores; an empty table where there is no choice.
    """
    tables = {setting: scores.table(setting, column) for setting in settings}
    tables = {setting: table for setting, table in tables.items() if estimate(table) is not None}
    if not tables:
        return Best(pd.DataFrame(), ())
    prompts = sorted(set.intersection(*(set(table.columns) for table in tables.values())))
    halves = [prompts[::2], prompts[1::2]]
    if not halves[1]:
        return Best(pd.DataFrame(), ())
    parts, scales = [], []
    for judged, choosing in (halves, halves[::-1]):
        means = {setting: np.nanmean(table[choosing].to_numpy()) for setting, table in tables.items()}
        best = max(means, key=lambda setting: means[setting])
        parts.append(tables[best][judged])
        scales.append(best.guidance_scale)
    return Best(pd.concat(parts, axis=1), tuple(scales))


def guidance_table(scores: Scores, column: str, steps: int) -> list[GuidanceRow]:
    """Every model that was judged at more than one guidance scale, searches left out.

    Args:
        scores: the judgements.
        column: a name of `COLUMNS`.
        steps: sampler steps.

    Returns:
        A row a model, in the order of the tables.
    """
    base_settings = scores.of(BASE, steps=steps)
    base_best = at_best(base_settings, column, scores)
    base_tables = {setting.guidance_scale: scores.table(setting, column) for setting in base_settings}
    rows = []
    for system in _models():
        settings = scores.of(system, steps=steps)
        estimates = {s.guidance_scale: scores.estimate(s, column) for s in settings}
        by_scale = {scale: found for scale, found in estimates.items() if found is not None}
        if len(by_scale) < 2:
            continue
        best = at_best(settings, column, scores)
        gain = difference(best.table, base_best.table) if system != BASE else None
        gains = {
            s.guidance_scale: difference(scores.table(s, column), base_tables[s.guidance_scale])
            for s in settings if system != BASE and s.guidance_scale in base_tables
        }  # fmt: skip
        known = {scale: found for scale, found in gains.items() if found is not None}
        rows.append(GuidanceRow(system, by_scale, estimate(best.table), best.scales, gain, known))
    return rows


def equal_cost_table(scores: Scores, column: str) -> list[EqualCostRow]:
    """Guided and unguided images of the same NFE: guidance evaluates twice a step, so it has half the steps.

    Args:
        scores: the judgements.
        column: a name of `COLUMNS`.

    Returns:
        A row a model for each NFE an image at which the base model was judged guided and some model unguided.
    """
    models = [s for s in scores.settings if s.system in _models()]
    costs = sorted(
        {s.nfe for s in models if s.system == BASE and s.guidance_scale != UNGUIDED}
        & {s.nfe for s in models if s.guidance_scale == UNGUIDED}
    )
    rows = []
    for nfe in costs:
        here = [s for s in models if s.nfe == nfe]
        anchor = at_best(_of(here, BASE, guided=True), column, scores)
        for system in _models():
            free, guided = _of(here, system, guided=False), _of(here, system, guided=True)
            unguided = scores.table(free[0], column) if free else pd.DataFrame()
            best = at_best(guided, column, scores)
            if free or guided:
                rows.append(EqualCostRow(
                    nfe, system, estimate(unguided), estimate(best.table), best.scales,
                    difference(unguided, anchor.table),
                    difference(best.table, anchor.table) if system != BASE else None,
                ))  # fmt: skip
    return rows


def _models() -> list[str]:
    return [name for name, system in SYSTEMS.items() if system.kind != "search"]


def _of(settings: Sequence[Setting], system: str, *, guided: bool) -> list[Setting]:
    return [s for s in settings if s.system == system and (s.guidance_scale != UNGUIDED) == guided]
