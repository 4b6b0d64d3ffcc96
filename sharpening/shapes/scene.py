"""Scenes of the embedded world: what may be in a picture, and how scenes are drawn at random.

A scene is one or two objects on a plain background. Positions and radii are in pixels of the 64x64 image,
`x` to the right and `y` downwards. A scene is drawn from a `numpy.random.Generator`, so it depends on nothing
but the seed it was given.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

IMAGE_SIZE = 64

SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("plain", "striped", "dotted")
RELATIONS = ("left of", "right of", "above", "below")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 50),
    "green": (40, 170, 70),
    "cyan": (50, 205, 215),
    "blue": (50, 80, 235),
    "purple": (150, 60, 200),
    "pink": (250, 130, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "grey": (150, 150, 150),
    "black": (20, 20, 20),
}
TEXTURE_SHADE = 0.4
"""Stripes and dots are drawn in the object's own colour times this."""

SMALL_RADIUS = (7.0, 8.5)
LARGE_RADIUS = (11.5, 13.5)
SINGLE_RADIUS = (10.0, 16.0)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene; `radius` is that of the circle of (nearly) the same area, in pixels."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float

    @property
    def binding(self) -> tuple[str, str, str]:
        """(colour, shape, texture): what held-out combinations are counted in."""
        return (self.colour, self.shape, self.texture)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two things on a plain background."""

    things: tuple[Thing, ...]
    background: str

    def relation(self) -> str | None:
        """How the first thing stands to the second (`RELATIONS`), None for a single thing."""
        if len(self.things) < 2:
            return None
        a, b = self.things
        dx, dy = a.x - b.x, a.y - b.y
        if abs(dx) >= abs(dy):
            return "left of" if dx < 0 else "right of"
        return "above" if dy < 0 else "below"


def _share(*words: str) -> float:
    """A number in [0, 1) that depends on the words alone: decides which combinations are held out."""
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def held_out(scene: Scene) -> bool:
    """Whether the scene shows a combination that never occurs in training.

    About one (colour, shape, texture) binding in twelve is held out, and about one pair of
    (colour, shape) in twelve, whatever order the two stand in.
    """
    if any(_share("binding", *t.binding) < 1 / 12 for t in scene.things):
        return True
    if len(scene.things) == 2:
        names = sorted(f"{t.colour} {t.shape}" for t in scene.things)
        return _share("pair", *names) < 1 / 12
    return False


def random_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Draw a scene; `count` is the number of things (default: two in three scenes out of four).

    Two things always differ in shape or colour, or are an identical pair (one scene of two in eight),
    and stand clearly beside or clearly above one another, without touching.
    """
    background = str(rng.choice(list(BACKGROUNDS)))
    if count is None:
        count = 2 if rng.random() < 0.75 else 1
    if count == 1:
        radius = rng.uniform(*SINGLE_RADIUS)
        x, y = rng.uniform(radius + 3, IMAGE_SIZE - radius - 3, size=2)
        return Scene((_thing(rng, x, y, radius),), background)

    radii = [rng.uniform(*(LARGE_RADIUS if rng.random() < 0.5 else SMALL_RADIUS)) for _ in range(2)]
    horizontal = rng.random() < 0.5
    along = [IMAGE_SIZE / 2 + side * rng.uniform(15.0, 16.5) for side in (-1, 1)]
    across = [IMAGE_SIZE / 2 + rng.uniform(-6, 6) for _ in range(2)]
    centres = [(u, v) if horizontal else (v, u) for u, v in zip(along, across, strict=True)]
    if rng.random() < 0.5:
        centres.reverse()
    first = _thing(rng, *centres[0], radii[0])
    if rng.random() < 1 / 8:
        second = dataclasses.replace(first, x=centres[1][0], y=centres[1][1])
    else:
        second = _thing(rng, *centres[1], radii[1])
        while (second.shape, second.colour) == (first.shape, first.colour):
            second = _thing(rng, *centres[1], radii[1])
    return Scene((first, second), background)


def _thing(rng: np.random.Generator, x: float, y: float, radius: float) -> Thing:
    return Thing(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        texture=str(rng.choice(TEXTURES)),
        x=float(x),
        y=float(y),
        radius=float(radius),
    )
