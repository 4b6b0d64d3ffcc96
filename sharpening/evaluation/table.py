"""The final table as plain text: metric × before, after and difference, a block a guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sharpening.evaluation.statistics import Comparison, Interval

HEADER = ("metric", "before", "after", "difference", "95 % interval", "")


def _decimals(comparison: Comparison) -> int:
    """Shares need three decimals, scores of tens or hundreds two."""
    return 3 if max(abs(comparison.before.mean), abs(comparison.after.mean)) <= 1.5 else 2


def _range(interval: Interval, decimals: int) -> str:
    return f"[{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"


def _cells(name: str, comparison: Comparison) -> tuple[str, ...]:
    decimals, difference = _decimals(comparison), comparison.difference
    before, after = (round(side.mean, decimals) + 0.0 for side in (comparison.before, comparison.after))  # no -0.00
    mark = "" if not difference.excludes_zero else "up" if difference.mean > 0 else "down"
    return (
        name,
        f"{before:.{decimals}f}",
        f"{after:.{decimals}f}",
        f"{difference.mean:+.{decimals}f}",
        _range(difference, decimals),
        mark,
    )


def format_table(comparisons: Mapping[str, Comparison], title: str = "") -> str:
    """One block of the table.

    Args:
        comparisons: a comparison a metric, in the order of the rows.
        title: a line above the block.

    Returns:
        Aligned lines without trailing blanks. The last column says `up` or `down` where the difference's interval
        excludes zero.
    """
    rows = [HEADER, *(_cells(name.replace("_", " "), comparison) for name, comparison in comparisons.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = [title] if title else []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 2)))
    return "\n".join(lines)


def final_table(
    by_scale: Mapping[float, Mapping[str, Comparison]],
    guidance_scale: float,
    eval_steps: int,
    reward: str = "",
    parts: Sequence[str] = (),
) -> str:
    """The table a run ends with.

    Args:
        by_scale: comparisons at each guidance scale.
        guidance_scale: the scale the model was sharpened for; its block comes first, with every category.
        eval_steps: sampler steps of an image.
        reward: the reward's name and unit, to explain its row.
        parts: rows of rewards beside it, `reward_<name>`.

    Returns:
        Text of several lines. Blocks at other scales show the metrics over all prompts only.
    """
    blocks = []
    for scale in sorted(by_scale, key=lambda value: (value != guidance_scale, value)):
        comparisons = by_scale[scale]
        own = scale == guidance_scale
        shown = {name: c for name, c in comparisons.items() if own or name in ("reward", "facts", "all", *parts)}
        prompts = max((c.prompts for c in comparisons.values()), default=0)
        nfe = eval_steps if scale == 1 else 2 * eval_steps
        title = f"guidance {scale:g}{', as sharpened' if own else ''}: {prompts} prompts, {nfe} evaluations an image"
        blocks.append(format_table(shown, title) if shown else f"{title}\nnothing was scored")
    legend = "facts: share of a prompt's facts that hold; all: share of prompts of which every fact holds"
    return "\n\n".join([*blocks, f"reward: {reward}; {legend}" if reward else legend])
