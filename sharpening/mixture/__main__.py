"""Draw the world of scalars and print its figures: `python -m sharpening.mixture --output docs/images/mixture.png`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sharpening.mixture.experiments import (
    SHARPENING,
    SLOPE,
    SYSTEMS,
    Draws,
    Measured,
    best_of,
    curve,
    ddpo,
    draw,
    guided,
    measure,
    particles,
    sharpened,
)
from sharpening.mixture.law import World, default_world
from sharpening.mixture.plot import picture

_HEAD = (
    "| system | mean reward | W1 to p* | tilt of equal reward: κ | W1 to it | share above 0 | width below 0 | above |"
)


def _pair(value: float, expected: float) -> str:
    """A number and the matched tilt's; a dash for the width of an empty half."""
    return f"{value:.2f} ({expected:.2f})".replace("nan", "–")


def row(name: str, found: Measured) -> str:
    """A line of the table; of each pair of numbers the second is the matched tilt's.

    Args:
        name: the system.
        found: its figures.

    Returns:
        Markdown.
    """
    pairs = [(shape, found.tilt_shapes[c]) for c, shape in found.shapes.items()]
    cells = [
        ", ".join(f"{getattr(shape, part):.2f} ({getattr(tilt, part):.2f})" for shape, tilt in pairs).replace(
            "nan", "–"
        )
        for part in ("upper", "lower_width", "upper_width")
    ]
    numbers = [f"{found.reward:.2f}", f"{found.to_optimum:.2f}", f"{found.slope:.2f}", f"{found.to_tilt:.2f}"]
    return f"| {' | '.join([name, *numbers, *cells])} |"


def _line(name: str, points: dict[int, float], places: list[int]) -> str:
    return f"| {' | '.join([name, *(f'{points[n]:.2f}' if n in points else '' for n in places)])} |"


def _print_lines(title: str, lines: dict[str, dict[int, float]]) -> None:
    """A table of distances, a column a place."""
    places = sorted({n for points in lines.values() for n in points})
    print(f"\n| {' | '.join([title, *map(str, places)])} |", "|---" * (len(places) + 1) + "|", sep="\n")
    for name, points in lines.items():
        print(_line(name, points, places))


def main() -> None:
    """Train, search, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("mixture.png"), help="where the figure goes (PNG)")
    output: Path = parser.parse_args().output
    torch.set_num_threads(1)  # a handful of scalars is too little to share out
    world, systems = default_world(), {}
    print(_HEAD, "|---" * 8 + "|", sep="\n")
    for name, system in SYSTEMS.items():
        systems[name] = system(world)
        print(row(name, measure(systems[name], world)), flush=True)
    print(row("p*", measure({c: law.quantiles(4000) for c, law in world.tilt(SLOPE).laws.items()}, world)))
    curves = {"RLHF sharpening": curve(sharpened, world, 200, 20), "DDPO": curve(ddpo, world, 80)}
    _print_lines("W1 to p* after updates", curves)
    print("\n| β of RLHF sharpening | κ | W1 to that tilt |", "|---" * 3 + "|", sep="\n")
    for beta in (0.625, 1.25, 2.5, 5.0):
        found = measure(draw(sharpened(world, options=replace(SHARPENING, beta=beta))), world)
        print(f"| {beta:g} | {found.slope:.2f} | {found.to_tilt:.2f} |", flush=True)
    searches: dict[str, tuple[Callable[[World, int], Draws], tuple[int, ...]]] = {
        "FK steering, its particles": (particles, (1, 2, 4, 8, 16, 32, 64)),
        "random search, the best image": (best_of, (1, 2, 4, 8, 16, 32)),
        "Free²Guide, path integral": (guided, (2, 4, 8, 16)),
    }
    budgets = {
        name: {n: measure(search(world, n), world).to_optimum for n in places}
        for name, (search, places) in searches.items()
    }
    _print_lines("W1 to p* with N =", budgets)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(picture(world, systems, curves, budgets))


if __name__ == "__main__":
    main()
