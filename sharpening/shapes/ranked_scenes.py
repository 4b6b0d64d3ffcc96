"""Pairs of scenes that differ in one respect, with captions that are true of one and wrong of the other.

What is right is known from the scenes themselves; the verifiers, who judge the comparison, are not asked.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from sharpening.shapes.benchmark import caption_for
from sharpening.shapes.captions import LARGER_AREA_RATIO, Claims
from sharpening.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing, held_out, random_scene

RESPECTS = ("attribute", "spatial", "non_spatial", "background")
"""In what two scenes may differ; the first three after IterComp's reward models (arXiv 2410.07171)."""
TRIES = 12
"""Captions drawn for each scene in the hope that they tell the two apart."""

_VALUES: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES}


@dataclasses.dataclass(frozen=True)
class ScenePair:
    """Two scenes, and for each of them the captions that it fulfils and the other does not."""

    scenes: tuple[Scene, Scene]
    captions: tuple[tuple[str, ...], tuple[str, ...]]


def draw_pair(
    respect: str,
    rng: np.random.Generator,
    excluded: set[str],
    captions: int = 2,
    allowed: Callable[[Scene], bool] = lambda scene: not held_out(scene),
) -> ScenePair:
    """Draw a scene, another that differs from it in one respect, and captions that tell them apart.

    Args:
        respect: one of `RESPECTS`.
        rng: draws scenes and captions.
        excluded: captions that must not occur (the benchmarks').
        captions: most captions of each scene; one of the two has at least one.
        allowed: which scenes may occur; by default those without a held-out combination.

    Returns:
        The pair.
    """
    while True:
        first = random_scene(rng)
        second = _ALTERATIONS[respect](first, rng) if allowed(first) else None
        if second is None or not allowed(second):
            continue
        own = _telling(first, second, rng, excluded, captions), _telling(second, first, rng, excluded, captions)
        if any(own):
            return ScenePair((first, second), own)


def _telling(scene: Scene, other: Scene, rng: np.random.Generator, excluded: set[str], count: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for _ in range(TRIES):
        caption, claims = caption_for(scene, rng, excluded)
        if not fulfils(other, claims):
            found[caption] = None
        if len(found) == count:
            break
    return tuple(found)


def fulfils(scene: Scene, claims: Claims) -> bool:
    """Whether everything that is claimed is true of the scene, for some assignment of claims to things.

    Args:
        scene: the scene.
        claims: what a caption says.

    Returns:
        True where all claims hold.
    """
    if claims.count not in (None, len(scene.things)) or claims.background not in (None, scene.background):
        return False
    return any(_fits(things, claims) for things in itertools.permutations(scene.things, len(claims.things)))


def _fits(things: tuple[Thing, ...], claims: Claims) -> bool:
    for thing, claim in zip(things, claims.things, strict=True):
        if any(getattr(claim, kind) not in (None, getattr(thing, kind)) for kind in _VALUES):
            return False
    if claims.relation is not None and Scene(things, "").relation() != claims.relation:
        return False
    if claims.larger is not None:
        ratio = (things[0].radius / things[1].radius) ** 2
        return ratio >= LARGER_AREA_RATIO if claims.larger else ratio <= 1 / LARGER_AREA_RATIO
    return True


def _other_attribute(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """A colour, shape or texture swapped between the things, or another one on one of them."""
    kind = str(rng.choice(list(_VALUES)))
    values = [getattr(thing, kind) for thing in scene.things]
    if len(set(values)) == 2 and rng.random() < 0.5:
        values.reverse()
    else:
        i = int(rng.integers(len(values)))
        values[i] = str(rng.choice([value for value in _VALUES[kind] if value != values[i]]))
    things = [dataclasses.replace(thing, **{kind: v}) for thing, v in zip(scene.things, values, strict=True)]
    if {thing.binding for thing in things} == {thing.binding for thing in scene.things}:
        return None  # the things have but changed places
    return dataclasses.replace(scene, things=tuple(things))


def _other_place(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The things change places, or stand above one another instead of side by side."""
    if len(scene.things) < 2:
        return None
    first, second = scene.things
    if rng.random() < 2 / 3:
        places = [(second.x, second.y), (first.x, first.y)]
    else:
        places = [(first.y, first.x), (second.y, second.x)]
    moved = (dataclasses.replace(t, x=x, y=y) for t, (x, y) in zip(scene.things, places, strict=True))
    return dataclasses.replace(scene, things=tuple(moved))


def _other_size_or_count(scene: Scene, rng: np.random.Generator) -> Scene:
    """The things change sizes, or one is left of them, or there are two equal ones where there was one."""
    if len({thing.binding for thing in scene.things}) == 2:
        first, second = scene.things
        things = dataclasses.replace(first, radius=second.radius), dataclasses.replace(second, radius=first.radius)
        return dataclasses.replace(scene, things=things)
    layout = random_scene(rng, count=3 - len(scene.things)).things
    named = {kind: getattr(scene.things[0], kind) for kind in _VALUES}
    return dataclasses.replace(scene, things=tuple(dataclasses.replace(thing, **named) for thing in layout))


def _other_background(scene: Scene, rng: np.random.Generator) -> Scene:
    return dataclasses.replace(scene, background=str(rng.choice([b for b in BACKGROUNDS if b != scene.background])))


_ALTERATIONS: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "attribute": _other_attribute,
    "spatial": _other_place,
    "non_spatial": _other_size_or_count,
    "background": _other_background,
}
