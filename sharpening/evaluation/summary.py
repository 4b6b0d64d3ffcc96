"""What an evaluation found: a row a prompt, paired comparisons a metric, and `summary.json` for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeGuard

from sharpening.evaluation.statistics import Comparison, compare
from sharpening.rewards.terms import reward_column

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
        parts: what each of several rewards says, and each that is only watched, in its own unit, by its name.
    """

    index: int
    prompt: str
    category: str
    phase: Literal["before", "after"]
    guidance_scale: float
    reward: float | None
    facts: float | None = None
    all: bool | None = None
    parts: dict[str, float | None] = field(default_factory=dict)


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
        `reward`, `reward_<name>` of each part, `facts` and `all` over all prompts, then `reward`, `facts` and `all`
        within each category. A prompt counts where both its phases have a value; a metric with fewer than two such
        prompts is left out.
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
            name = metric if category is None else metric_name(metric, category)
            _add(comparisons, name, [(getattr(a, metric), getattr(b, metric)) for a, b in members])
            if name == "reward":
                for part in part_names(rows):
                    _add(comparisons, reward_column(part), [(a.parts.get(part), b.parts.get(part)) for a, b in members])
    return comparisons


def part_names(results: Iterable[PromptResult]) -> list[str]:
    """Names of the rewards that rows tell about beside the headline.

    Args:
        results: rows.

    Returns:
        Names, in order of appearance.
    """
    return list(dict.fromkeys(name for row in results for name in row.parts))


def _add(comparisons: Comparisons, name: str, values: Sequence[tuple[float | None, float | None]]) -> None:
    """Compare a metric over the prompts that have it before and after, where there are enough."""
    paired = [(float(a), float(b)) for a, b in values if _is_number(a) and _is_number(b)]
    if len(paired) >= 2:
        comparisons[name] = compare(*zip(*paired, strict=True))


def _is_number(value: float | None) -> TypeGuard[float]:
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
    """Rows as columns, for `evaluation.parquet`; each part of `parts` is one."""
    rows = [asdict(row) for row in results]
    columns = {name: [row[name] for row in rows] for name in PromptResult.__dataclass_fields__ if name != "parts"}
    parts = {reward_column(name): [row.parts.get(name) for row in results] for name in part_names(results)}
    return columns | parts


def read_results(rows: Iterable[Mapping[str, Any]], parts: Sequence[str] = ()) -> list[PromptResult]:
    """What `result_columns` wrote.

    Args:
        rows: rows of `evaluation.parquet`.
        parts: names of the rewards that have a column of their own.

    Returns:
        The rows; a part whose column is not there is absent from them.
    """
    own = {reward_column(name): name for name in parts}
    fields_ = [name for name in PromptResult.__dataclass_fields__ if name != "parts"]
    return [
        PromptResult(
            **{name: row[name] for name in fields_},
            parts={name: row[column] for column, name in own.items() if column in row},
        )
        for row in rows
    ]
