"""What captions say: claims about a scene, their wording, and the facts a verifier can check.

A caption is worded from `Claims`, never from the scene itself, so that the same claims give a prompt
(`say`), its checkable facts (`facts_of`) and near misses of it (`corrupt`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sharpening.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing

CATEGORIES = ("colour", "shape", "texture", "spatial", "non-spatial", "complex")
"""T2I-CompBench's six: attribute binding (three), spatial and non-spatial relations, and everything at once."""

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
LARGER_AREA_RATIO = 1.5
"""A thing counts as larger than another when its area is at least this many times the other's."""

_RELATION_WORDS = {
    "left of": ("to the left of", "on the left of"),
    "right of": ("to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ")


@dataclasses.dataclass(frozen=True)
class ThingClaim:
    """What a caption says about one thing; None where it is silent."""

    shape: str
    colour: str | None = None
    texture: str | None = None


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a caption says about a scene; None where it is silent.

    `relation` and `larger` are of the first thing to the second; `count` is said out loud
    ("two red circles"), and then `things` repeats the same claim that many times.
    """

    things: tuple[ThingClaim, ...]
    relation: str | None = None
    larger: bool | None = None
    count: int | None = None
    background: str | None = None


@dataclasses.dataclass(frozen=True)
class Fact:
    """One checkable statement: `kind` is shape, colour, texture, relation, larger, count or background."""

    kind: str
    thing: int
    value: str


def facts_of(claims: Claims) -> tuple[Fact, ...]:
    """The statements that a picture must fulfil for the caption to be fully right."""
    facts = []
    for i, thing in enumerate(claims.things):
        for kind in ("shape", "colour", "texture"):
            value = getattr(thing, kind)
            if value is not None:
                facts.append(Fact(kind, i, value))
    if claims.relation is not None:
        facts.append(Fact("relation", 0, claims.relation))
    if claims.larger is not None:
        facts.append(Fact("larger", 0, "yes" if claims.larger else "no"))
    if claims.count is not None:
        facts.append(Fact("count", 0, str(claims.count)))
    if claims.background is not None:
        facts.append(Fact("background", 0, claims.background))
    return tuple(facts)


def claims_about(scene: Scene, rng: np.random.Generator, category: str | None = None) -> Claims | None:
    """Say something true about the scene.

    Args:
        scene: the scene to describe.
        rng: decides what is mentioned.
        category: one of `CATEGORIES`: the claims then test that; None mentions this and that, as training captions do.

    Returns:
        The claims, or None where the scene cannot carry the category (one thing has no relation).
    """
    if category is None:
        return _any_claims(scene, rng)
    things = scene.things
    if len(things) == 2 and rng.random() < 0.5:
        scene = dataclasses.replace(scene, things=things[::-1])
        things = scene.things
    pair = len(things) == 2 and things[0].binding != things[1].binding
    if category == "non-spatial":
        if len(things) == 1 or not pair:
            return Claims((_claim(things[0]),) * len(things), count=len(things))
        ratio = (things[0].radius / things[1].radius) ** 2
        if max(ratio, 1 / ratio) < LARGER_AREA_RATIO * 1.15:
            return None
        return Claims(tuple(_claim(t) for t in things), larger=bool(ratio > 1))
    if not pair:
        return None
    if category == "colour" and things[0].colour != things[1].colour:
        return Claims(tuple(_claim(t) for t in things))
    if category == "shape" and things[0].shape != things[1].shape:
        same = things[0].colour == things[1].colour
        return Claims(tuple(_claim(t, colour=same) for t in things), background=scene.background)
    if category == "texture" and things[0].texture != things[1].texture:
        return Claims(tuple(_claim(t, texture=True) for t in things))
    if category == "spatial":
        return Claims(tuple(_claim(t) for t in things), relation=scene.relation())
    if category == "complex":
        claims = tuple(_claim(t, texture=True) for t in things)
        return Claims(claims, relation=scene.relation(), background=scene.background)
    return None


def _claim(thing: Thing, colour: bool = True, texture: bool = False) -> ThingClaim:
    return ThingClaim(thing.shape, thing.colour if colour else None, thing.texture if texture else None)


def _any_claims(scene: Scene, rng: np.random.Generator) -> Claims:
    things = scene.things
    background = scene.background if rng.random() < 0.4 else None
    colour, texture = rng.random() < 0.92, rng.random() < 0.5
    if len(things) == 1:
        count = 1 if rng.random() < 0.15 else None
        return Claims((_claim(things[0], colour, texture),), count=count, background=background)
    if things[0].binding == things[1].binding:
        return Claims((_claim(things[0], colour, texture),) * 2, count=2, background=background)
    if rng.random() < 0.5:
        scene = dataclasses.replace(scene, things=things[::-1])
        things = scene.things
    relation = scene.relation() if rng.random() < 0.55 else None
    ratio = (things[0].radius / things[1].radius) ** 2
    larger = None
    if relation is None and max(ratio, 1 / ratio) > LARGER_AREA_RATIO * 1.15 and rng.random() < 0.6:
        larger = bool(ratio > 1)
    return Claims(tuple(_claim(t, colour, texture) for t in things), relation, larger, None, background)


def say(claims: Claims, rng: np.random.Generator) -> str:
    """Word the claims, in one of several ways.

    Args:
        claims: what to say.
        rng: decides the wording only.

    Returns:
        One caption in lower case.
    """
    opening = str(rng.choice(_OPENINGS))
    if claims.count is not None:
        noun = _noun(claims.things[0])
        if claims.count == 1:
            words = f"{rng.choice(('one', 'a single', 'exactly one'))} {noun}"
        else:
            plural = noun + ("es" if noun.endswith("cross") else "s")
            words = f"{rng.choice(('two', 'a pair of', 'exactly two'))} {plural}"
    elif len(claims.things) == 1:
        words = _article(_noun(claims.things[0]))
    else:
        words = _two(claims, rng)
    if claims.background is not None:
        words += str(rng.choice((f" on a {claims.background} background", f" in front of {claims.background}")))
    return opening + words


def _two(claims: Claims, rng: np.random.Generator) -> str:
    first, second = (_noun(t) for t in claims.things)
    if claims.larger is not None:
        sizes = ("large", "small") if claims.larger else ("small", "large")
        compare = "bigger than" if claims.larger else "smaller than"
        return str(
            rng.choice(
                (
                    f"a {sizes[0]} {first} and a {sizes[1]} {second}",
                    f"{_article(first)} {compare} {_article(second)}",
                )
            )
        )
    if claims.relation is not None:
        return f"{_article(first)} {rng.choice(_RELATION_WORDS[claims.relation])} {_article(second)}"
    return f"{_article(first)} {rng.choice(('and', 'with', 'next to'))} {_article(second)}"


def _noun(thing: ThingClaim) -> str:
    return " ".join(word for word in (thing.texture, thing.colour, thing.shape) if word)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def corrupt(claims: Claims, rng: np.random.Generator) -> Claims:
    """A near miss: the same claims with one thing wrong (an attribute, a swap, a relation, a count).

    Args:
        claims: true claims.
        rng: decides what goes wrong.

    Returns:
        Claims that differ in one statement and are not true of a scene that the claims fit fully.
    """
    choices = ["attribute"] * 2
    if len(claims.things) == 2 and claims.count is None:
        choices += [kind for kind in ("colour", "texture") if _swappable(claims, kind)] * 2
    choices += ["relation"] * 2 if claims.relation else []
    choices += ["larger"] * 2 if claims.larger is not None else []
    choices += ["count"] if claims.count else []
    choices += ["background"] if claims.background else []
    what = str(rng.choice(choices))
    if what in ("colour", "texture"):
        first, second = claims.things
        values = getattr(second, what), getattr(first, what)
        swapped = tuple(dataclasses.replace(t, **{what: v}) for t, v in zip((first, second), values, strict=True))
        return dataclasses.replace(claims, things=swapped)
    if what == "relation":
        return dataclasses.replace(claims, relation=OPPOSITE[claims.relation or ""])
    if what == "larger":
        return dataclasses.replace(claims, larger=not claims.larger)
    if what == "count":
        other = 3 - (claims.count or 1)
        return dataclasses.replace(claims, things=claims.things[:1] * other, count=other)
    if what == "background":
        return dataclasses.replace(claims, background=_other(rng, tuple(BACKGROUNDS), claims.background))
    return _wrong_attribute(claims, rng)


def _swappable(claims: Claims, kind: str) -> bool:
    first, second = claims.things
    values = getattr(first, kind), getattr(second, kind)
    return None not in values and values[0] != values[1] and first.shape != second.shape


def _wrong_attribute(claims: Claims, rng: np.random.Generator) -> Claims:
    values = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES}
    i = int(rng.integers(len(claims.things)))
    thing = claims.things[i]
    kind = str(rng.choice([k for k in values if getattr(thing, k) is not None]))
    wrong = dataclasses.replace(thing, **{kind: _other(rng, values[kind], getattr(thing, kind))})
    if claims.count:
        return dataclasses.replace(claims, things=(wrong,) * len(claims.things))
    return dataclasses.replace(claims, things=tuple(wrong if j == i else t for j, t in enumerate(claims.things)))


def _other(rng: np.random.Generator, values: tuple[str, ...], current: str | None) -> str:
    return str(rng.choice([value for value in values if value != current]))
