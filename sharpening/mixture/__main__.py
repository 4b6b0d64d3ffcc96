"""Draw the world of scalars and print its figures: `python -m sharpening.mixture --output docs/images/mixture.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sharpening.mixture.experiments import SLOPE, SYSTEMS, Measured, best_of, guided, measure, particles
from sharpening.mixture.law import default_world, distance
from sharpening.mixture.plot import picture

_HEAD = "| system | mean reward | W1 to p* | tilt of equal reward: κ | W1 to it | share above 0 | width below 0 | above |"


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
        ", ".join(f"{getattr(shape, part):.2f} ({getattr(tilt, part):.2f})" for shape, tilt in pairs)
        for part in ("upper", "lower_width", "upper_width")
    ]
    numbers = [f"{found.reward:.2f}", f"{found.to_optimum:.2f}", f"{found.slope:.2f}", f"{found.to_tilt:.2f}"]
    return f"| {' | '.join([name, *numbers, *cells])} |"


def main() -> None:
    """Train, search, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("mixture.png"), help="where the figure goes (PNG)")
    output = parser.parse_args().output
    world = default_world()
    systems = {}
    print(_HEAD, "|---" * 8 + "|", sep="\n")
    for name, system in SYSTEMS.items():
        systems[name] = system(world)
        print(row(name, measure(systems[name])), flush=True)
    optimum = {c: law.quantiles(4000) for c, law in world.tilt(SLOPE).laws.items()}
    print(row("p*", measure(optimum)))
    budgets = {
        "FK steering, its particles": {n: measure(particles(world, n)).to_optimum for n in (1, 2, 4, 8, 16, 32, 64)},
        "random search, the best image": {n: measure(best_of(world, n)).to_optimum for n in (1, 2, 4, 8, 16, 32)},
        "Free²Guide, path integral": {n: measure(guided(world, n)).to_optimum for n in (2, 4, 8, 16)},
    }
    print("\n| W1 to p* | N = " + " | ".join(map(str, (1, 2, 4, 8, 16, 32, 64))), "|---" * 8 + "|", sep=" |\n")
    for name, points in budgets.items():
        print(f"| {name} | {' | '.join(f'{points[n]:.2f}' if n in points else '' for n in (1, 2, 4, 8, 16, 32, 64))} |")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(picture(world, systems, budgets))
    floor = sum(distance(x, world.laws[c]) for c, x in systems["base"].items()) / len(world.laws)
    print(f"\nThe base sampler of 20 steps is {floor:.3f} from its own laws. Figure: {output}")


if __name__ == "__main__":
    main()
