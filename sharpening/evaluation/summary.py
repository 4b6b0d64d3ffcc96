"""What an evaluation found: a row a prompt, paired comparisons a metric, and `summary.json` for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sharpening.evaluation.statistics import Comparison, compare

SCHEMA = 1


@dataclass(frozen=True)
class PromptResult:
    """One held-out prompt, drawn at a fixed seed and judged.

    Attributes:
        index: place of the prompt in the benchmark; before and after are paired by it.
        prompt: the prompt.
        category: its category.
        phase: before or after training.
        guidance_scale: guidance the image was drawn with.
        reward: the reward, in its unit; `None` when the image could not be scored.
        facts: share of the prompt's facts that the verifier finds; `None` where no verifier applies.
        all: whether every fact holds; `None` where no verifier applies.
    """

    index: int
    prompt: str
    category: str
    phase: Literal["before", "after"]
    guidance_scale: float
    reward: float | None
    facts: float | None = None
    all: bool | None = None


METRICS = ("reward", "facts", "all")
Comparisons = dict[str, Comparison]


def judged(reward: float | None, facts: Sequence[bool] | None) -> dict[str, Any]:
    """The judgement fields of a `PromptResult`.

    Args:
        reward: the reward, `None` when scoring failed.
        facts: the verifier's answer for each fact, `None` where no verifier applies.

    Returns:
        `reward`, `facts` and `all`.
    """
    if not facts:
        return {"reward": reward, "facts": None, "all": None}
    return {"reward": reward, "facts": sum(map(bool, facts)) / len(facts), "all": all(facts)}


def metric_name(metric: str, category: str) -> str:
    """A metric's name within a category: `all_non_spatial`."""
    return f"{metric}_{category}".replace("-", "_").replace(" ", "_")


def compare_results(results: Iterable[PromptResult], guidance_scale: float) -> Comparisons:
    """Compare before and after at one guidance scale.

    Args:
        results: rows of both phases; rows at other scales are left out.
        guidance_scale: the scale.

    Returns:
        `reward`, `facts` and `all` over all prompts, then each within each category. A prompt counts where both its
        phases have a value; a metric with fewer than two such prompts is left out.
    """
    rows = [row for row in results if row.guidance_scale == guidance_scale]
    phases: dict[str, dict[int, PromptResult]] = {"before": {}, "after": {}}
    for row in rows:
        phases[row.phase][row.index] = row
    pairs = [(row, phases["after"][index]) for index, row in phases["before"].items() if index in phases["after"]]
    comparisons: Comparisons = {}
    categories = dict.fromkeys(row.category for row, _ in pairs)
    groups = [(None, pairs)] + [(name, [pair for pair in pairs if pair[0].category == name]) for name in categories]
    for category, members in groups:
        for metric in METRICS:
            values = [(getattr(a, metric), getattr(b, metric)) for a, b in members]
            paired = [(float(a), float(b)) for a, b in values if _is_number(a) and _is_number(b)]
            if len(paired) >= 2:
                name = metric if category is None else metric_name(metric, category)
                comparisons[name] = compare(*zip(*paired, strict=True))
    return comparisons


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def summarise(
    results: Sequence[PromptResult],
    guidance_scale: float,
    *,
    updates: int,
    seconds: float,
    nfe: int,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Contents of `summary.json`.

    Args:
        results: rows of both phases, at every scale that was evaluated.
        guidance_scale: the scale the model was sharpened for.
        updates: optimiser updates made.
        seconds: wall time of the run.
        nfe: denoiser evaluations of the run, training and evaluation.
        extra: anything else worth a program's while; `metrics` and the like cannot be overwritten.

    Returns:
        `metrics.NAME.{before,after,difference}.{mean,low,high}` at the scale the model was sharpened for,
        `guidance.<w>.metrics…` at every scale, `updates`, `seconds`, `nfe`.
    """
    scales = list(dict.fromkeys([guidance_scale, *sorted(row.guidance_scale for row in results)]))
    found = {scale: compare_results(results, scale) for scale in scales}
    at_scale = {
        f"{scale:g}": {
            "metrics": {name: comparison.as_dict() for name, comparison in comparisons.items()},
            "prompts": max((comparison.prompts for comparison in comparisons.values()), default=0),
        }
        for scale, comparisons in found.items()
    }
    own = at_scale[f"{guidance_scale:g}"]
    return {
        **(extra or {}),
        "schema": SCHEMA,
        "metrics": own["metrics"],
        "guidance_scale": guidance_scale,
        "prompts": own["prompts"],
        "guidance": at_scale,
        "updates": updates,
        "seconds": seconds,
        "nfe": nfe,
    }


def result_columns(results: Sequence[PromptResult]) -> dict[str, list[Any]]:
    """Rows as columns, for `evaluation.parquet`."""
    rows = [asdict(row) for row in results]
    return {name: [row[name] for row in rows] for name in PromptResult.__dataclass_fields__}
