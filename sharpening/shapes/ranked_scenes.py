"""Pairs of scenes that a caption ranks: the winner fulfils it, the loser misses it in one respect.

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

RESPECTS = ("attribute", "spatial", "non_spatial")
"""In what a loser may be wrong, after IterComp's three reward models (arXiv 2410.07171)."""

_VALUES: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES}


@dataclasses.dataclass(frozen=True)
class ScenePair:
    """A caption, a scene that fulfils it and one that does not."""

    prompt: str
    winner: Scene
    loser: Scene


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
    chosen = itertools.permutations(scene.things, len(claims.things))
    return any(_fits(things, scene.background, claims) for things in chosen)


def _fits(things: tuple[Thing, ...], background: str, claims: Claims) -> bool:
    for thing, claim in zip(things, claims.things, strict=True):
        if any(getattr(claim, kind) not in (None, getattr(thing, kind)) for kind in _VALUES):
            return False
    if claims.relation is not None and Scene(things, background).relation() != claims.relation:
        return False
    if claims.larger is not None:
        ratio = (things[0].radius / things[1].radius) ** 2
        return ratio >= LARGER_AREA_RATIO if claims.larger else ratio <= 1 / LARGER_AREA_RATIO
    return True


def draw_pair(
    respect: str,
    rng: np.random.Generator,
    excluded: set[str],
    allowed: Callable[[Scene], bool] = lambda scene: not held_out(scene),
) -> ScenePair:
    """Draw a caption with a scene that fulfils it and one that is wrong in one respect.

    Args:
        respect: one of `RESPECTS`, or "background".
        rng: draws scenes, caption and mistake.
        excluded: captions that must not occur (the benchmarks').
        allowed: which scenes may occur, as winner and as loser; by default those without a held-out combination.

    Returns:
        The pair.
    """
    while True:
        scene = random_scene(rng)
        if not allowed(scene):
            continue
        prompt, claims = caption_for(scene, rng, excluded)
        loser = _ALTERATIONS[respect](scene, claims, rng)
        if loser is not None and allowed(loser) and not fulfils(loser, claims):
            return ScenePair(prompt, scene, loser)


def _with_things(scene: Scene, *things: Thing) -> Scene:
    return dataclasses.replace(scene, things=things)


def _wrong_attribute(scene: Scene, claims: Claims, rng: np.random.Generator) -> Scene:
    """A colour, shape or texture swapped between the things, or another one on one of them."""
    del claims
    kind = str(rng.choice(list(_VALUES)))
    values = [getattr(thing, kind) for thing in scene.things]
    if len(values) == 2 and rng.random() < 0.5:
        values.reverse()
    else:
        i = int(rng.integers(len(values)))
        values[i] = str(rng.choice([value for value in _VALUES[kind] if value != values[i]]))
    things = (dataclasses.replace(thing, **{kind: v}) for thing, v in zip(scene.things, values, strict=True))
    return _with_things(scene, *things)


def _wrong_place(scene: Scene, claims: Claims, rng: np.random.Generator) -> Scene | None:
    """The things change places, or stand above one another instead of side by side."""
    if claims.relation is None:
        return None
    first, second = scene.things
    if rng.random() < 0.5:
        places = [(second.x, second.y), (first.x, first.y)]
    else:
        places = [(first.y, first.x), (second.y, second.x)]
    moved = (dataclasses.replace(t, x=x, y=y) for t, (x, y) in zip(scene.things, places, strict=True))
    return _with_things(scene, *moved)


def _wrong_size_or_count(scene: Scene, claims: Claims, rng: np.random.Generator) -> Scene | None:
    """The things change sizes, or there is one more or one fewer of them."""
    if claims.larger is not None:
        first, second = scene.things
        first, second = (
            dataclasses.replace(first, radius=second.radius),
            dataclasses.replace(second, radius=first.radius),
        )
        return _with_things(scene, first, second)
    if claims.count is None:
        return None
    named = scene.things[0]
    layout = random_scene(rng, count=3 - len(scene.things)).things
    return _with_things(
        scene,
        *(dataclasses.replace(t, shape=named.shape, colour=named.colour, texture=named.texture) for t in layout),
    )


def _wrong_background(scene: Scene, claims: Claims, rng: np.random.Generator) -> Scene:
    del claims
    return dataclasses.replace(scene, background=str(rng.choice([b for b in BACKGROUNDS if b != scene.background])))


_ALTERATIONS: dict[str, Callable[[Scene, Claims, np.random.Generator], Scene | None]] = {
    "attribute": _wrong_attribute,
    "spatial": _wrong_place,
    "non_spatial": _wrong_size_or_count,
    "background": _wrong_background,
}
