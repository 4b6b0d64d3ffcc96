"""The capacity plan as a picture: throughput over the number of actors, and who is idle."""

from collections.abc import Sequence

from rayjobs.simulation.model import Outcome
from sharpening.evaluation.comparison.plot_style import finish_axes, new_figure, png
from sharpening.evaluation.plots import BLUE, GREY, RED

COLOURS = (BLUE, RED, "#3f8f6b", "#b08a2e", "#7a5aa6")
PARTS = {"rollout": BLUE, "reward": "#b08a2e", "learner": RED, "network": GREY, "coordinator": "#3f8f6b"}


def draw(outcomes: Sequence[Outcome]) -> bytes:
    """Draw a plan; where other things than actors and staleness are varied, the best of them counts.

    Args:
        outcomes: Of simulations.

    Returns:
        A PNG.
    """
    figure = new_figure(10.0, 4.4)
    left, right = figure.subplots(1, 2)
    lines = best_lines(outcomes)
    first = next(iter(lines.values()))[0]
    counts = sorted({outcome.layout.actors for outcome in outcomes})
    ideal = [first.images_per_second * count / first.layout.actors for count in counts]
    left.plot(counts, ideal, color=GREY, linestyle=":", label="proportional")
    for (staleness, line), colour in zip(lines.items(), COLOURS * 9, strict=False):
        left.plot(
            [o.layout.actors for o in line], [o.images_per_second for o in line], color=colour, marker="o",
            markersize=3.5, label=f"staleness {staleness}",
        )  # fmt: skip
    staleness, line = list(lines.items())[-1]
    for part, colour in PARTS.items():
        right.plot(
            [o.layout.actors for o in line], [o.busy[part] for o in line], color=colour, marker="o", markersize=3.5,
            label=part,
        )  # fmt: skip
    for axes, name, title in (
        (left, "images scored / s", "Throughput"),
        (right, "share of time at work", f"Who works, at staleness {staleness}"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("rollout actors")
        axes.set_ylabel(name)
        axes.legend(fontsize=8, frameon=False)
        finish_axes(axes, title)
    left.set_yscale("log", base=2)
    right.set_ylim(0, 1.05)
    return png(figure)


def best_lines(outcomes: Sequence[Outcome]) -> dict[int, list[Outcome]]:
    """The fastest outcome for each number of actors, by staleness.

    Args:
        outcomes: Of simulations.

    Returns:
        Outcomes by rising number of actors.
    """
    best: dict[tuple[int, int], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.layout.staleness, outcome.layout.actors)
        if key not in best or outcome.images_per_second > best[key].images_per_second:
            best[key] = outcome
    lines: dict[int, list[Outcome]] = {}
    for staleness, actors in sorted(best):
        lines.setdefault(staleness, []).append(best[staleness, actors])
    return lines
