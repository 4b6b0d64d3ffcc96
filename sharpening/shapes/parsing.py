"""Reads captions back: from the words of the world's grammar (`captions.say`) to the claims they were worded from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sharpening.shapes.captions import Claims, ThingClaim
from sharpening.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

_RELATIONS = {
    "to the left of": "left of",
    "on the left of": "left of",
    "to the right of": "right of",
    "on the right of": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
_LARGER = {"bigger than": True, "smaller than": False}


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


def _noun(number: int) -> str:
    """Pattern of `[texture] [colour] shape`, with groups `texture1`, `colour1`, `shape1`."""
    texture, colour, shape = (f"?P<{kind}{number}>" for kind in ("texture", "colour", "shape"))
    return f"(?:({texture}{_any(TEXTURES)}) )?(?:({colour}{_any(COLOURS)}) )?({shape}{_any(SHAPES)})"


_SENTENCES = tuple(
    re.compile(sentence)
    for sentence in (
        f"an? {_noun(1)}",
        f"(?P<one>one|a single|exactly one) {_noun(1)}",
        f"(?P<two>two|a pair of|exactly two) {_noun(1)}(?:(?<=cross)es|(?<!cross)s)",
        f"an? {_noun(1)} (?:and|with|next to) an? {_noun(2)}",
        f"an? {_noun(1)} (?P<relation>{_any(_RELATIONS)}) an? {_noun(2)}",
        f"an? {_noun(1)} (?P<compared>{_any(_LARGER)}) an? {_noun(2)}",
        f"a large (?P<large>){_noun(1)} and a small {_noun(2)}",
        f"a small (?P<small>){_noun(1)} and a large {_noun(2)}",
    )
)
_OPENING = re.compile("(?:a picture of |an image of |a drawing of )?")
_BACKGROUND = re.compile(rf"(.*?)(?: on a ({_any(BACKGROUNDS)}) background| in front of ({_any(BACKGROUNDS)}))?")


def parse(caption: str) -> Claims | None:
    """Find out what a caption claims.

    Args:
        caption: any text.

    Returns:
        The claims, of which `say` words this caption, or None where the grammar has no such caption.
    """
    opening = _OPENING.match(caption)
    body = _BACKGROUND.fullmatch(caption, opening.end() if opening else 0)
    if body is None:
        return None
    background = body[2] or body[3]
    for sentence in _SENTENCES:
        if found := sentence.fullmatch(body[1]):
            return _claims(found.groupdict(), background)
    return None


def _claims(found: dict[str, str | None], background: str | None) -> Claims:
    first, *second = [
        ThingClaim(str(found[f"shape{i}"]), found[f"colour{i}"], found[f"texture{i}"])
        for i in (1, 2)
        if f"shape{i}" in found
    ]
    if "two" in found:
        return Claims((first, first), count=2, background=background)
    larger = {"compared": _LARGER.get(found.get("compared") or ""), "large": True, "small": False}
    return Claims(
        (first, *second),
        relation=_RELATIONS.get(found.get("relation") or ""),
        larger=next((value for name, value in larger.items() if name in found), None),
        count=1 if "one" in found else None,
        background=background,
    )
