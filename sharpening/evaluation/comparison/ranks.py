"""Whether our ordering of the systems is the paper's, column by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
from scipy.stats import kendalltau, spearmanr

from sharpening.evaluation.comparison import paper
from sharpening.evaluation.comparison.estimate import difference, estimate
from sharpening.evaluation.comparison.records import Setting
from sharpening.evaluation.comparison.scores import Scores

MIN_SYSTEMS = 3


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of two orderings.

    Attributes:
        spearman: Spearman's ρ, 1 for the same order and −1 for the reverse.
        kendall: Kendall's τ_b.
        p_value: of τ under no relation, two-sided.
        systems: systems compared.
    """

    spearman: float
    kendall: float
    p_value: float
    systems: int


@dataclass(frozen=True)
class Agreement:
    """Our ordering beside the paper's in one column.

    Attributes:
        correlation: over the systems that both have.
        decided: pairs of systems that our intervals tell apart and the paper ranks.
        agreeing: those of them that the paper orders the same way.
        reversed: the others, (better with us, better in the paper).
    """

    correlation: Correlation
    decided: int
    agreeing: int
    reversed: tuple[tuple[str, str], ...]


def rank_correlation(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Correlation | None:
    """Rank correlation over the systems that both sides have.

    Args:
        ours: number by system.
        theirs: number by system.

    Returns:
        The correlation; `None` for fewer than three systems, or where one side ranks all alike.
    """
    names = [name for name in ours if name in theirs]
    first, second = [ours[name] for name in names], [theirs[name] for name in names]
    if len(names) < MIN_SYSTEMS or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    tau = kendalltau(first, second)
    rho = spearmanr(first, second)
    return Correlation(float(rho.statistic), float(tau.statistic), float(tau.pvalue), len(names))


def agreement(tables: Mapping[str, pd.DataFrame], theirs: Mapping[str, float]) -> Agreement | None:
    """Compare one column's ordering with the paper's, and where our intervals decide, pair by pair.

    Args:
        tables: our scores by system, seeds down and prompts across.
        theirs: the paper's number by system.

    Returns:
        The agreement; `None` where no correlation is defined.
    """
    estimates = {name: estimate(table) for name, table in tables.items()}
    means = {name: found.mean for name, found in estimates.items() if found is not None}
    correlation = rank_correlation(means, theirs)
    if correlation is None:
        return None
    decided, flipped = 0, []
    for a, b in combinations([name for name in means if name in theirs], 2):
        gap = difference(tables[a], tables[b])
        if gap is None or gap.word not in ("above", "below") or theirs[a] == theirs[b]:
            continue
        decided += 1
        if (gap.mean > 0) != (theirs[a] > theirs[b]):
            flipped.append((a, b) if gap.mean > 0 else (b, a))
    return Agreement(correlation, decided, decided - len(flipped), tuple(flipped))


def agreements(settings: Mapping[str, Setting], scores: Scores) -> dict[str, Agreement]:
    """Compare all columns with the paper's Table 1.

    The paper's "Inference Scaling" stands beside the mean of our three searches of that work.

    Args:
        settings: the main table's setting by system.
        scores: our judgements.

    Returns:
        Agreement by column; columns where it is not defined are left out.
    """
    found = {}
    for column in paper.COLUMNS:
        tables = {name: scores.table(setting, column) for name, setting in settings.items()}
        family = [tables[name] for name in paper.INFERENCE_SCALING if name in tables]
        if family:
            tables["inference_scaling"] = sum(family[1:], start=family[0]) / len(family)
        one = agreement(tables, {name: row[column] for name, row in paper.TABLE_1.items()})
        if one is not None:
            found[column] = one
    return found
