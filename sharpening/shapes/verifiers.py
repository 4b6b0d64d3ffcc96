"""Answers from pixels whether the facts of a prompt hold; nothing is learned.

The picture is cut into things (background by the border's majority, then connected regions), each thing is named
by palette, shape template and darkness pattern, and the prompt's things are matched to those found so that as many
facts as possible hold. These are the judges of the comparison: the headline runs never train on them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sharpening.shapes.captions import LARGER_AREA_RATIO, Fact
from sharpening.shapes.render import shape_mask
from sharpening.shapes.scene import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, TEXTURE_SHADE

MIN_AREA = 36
"""Regions of fewer pixels are crumbs, not things."""
MIN_OVERLAP = 0.68
"""A region whose best template overlaps less (intersection over union) has no shape."""
SHAPE_AREA = {"circle": 3.14, "square": 3.17, "triangle": 2.05, "cross": 2.72}
"""Area of each shape at radius 1 (`render.shape_mask`)."""
FOREGROUND_DISTANCE = 48.0
"""Euclidean RGB distance from the background beyond which a pixel belongs to a thing."""
DARK_SHARE = (0.09, 0.75)
"""Share of dark pixels of a thing with a texture; below it the thing is plain."""
STRIPE_RATIO = 0.62
"""Share of the darkness' variance that lies between rows: above it stripes, below it dots."""

_BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
_COLOUR_RGB = np.array(list(COLOURS.values()), dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Found:
    """A thing found in a picture; None where the pixels do not tell. Centre and area in pixels."""

    shape: str | None
    colour: str | None
    texture: str | None
    x: float
    y: float
    area: float

    @property
    def size(self) -> float:
        """Squared radius in pixels: the area relative to the shape's at radius 1, so that shapes compare."""
        return self.area / SHAPE_AREA.get(self.shape or "", 2.8)


def verify(image: np.ndarray, facts: Sequence[Fact]) -> tuple[bool, ...]:
    """Check a prompt's facts against a picture.

    Args:
        image: uint8 `[64, 64, 3]`.
        facts: the prompt's facts (`captions.facts_of`).

    Returns:
        One bool a fact, in the facts' order.

    Raises:
        ValueError: if the image is not uint8 of that size.
    """
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"verify takes uint8 [64, 64, 3] images, got {image.dtype} {list(image.shape)}")
    background, things = look(image)
    wanted = 1 + max((fact.thing for fact in facts), default=0)
    if any(fact.kind in ("relation", "larger") for fact in facts):
        wanted = max(wanted, 2)
    candidates: list[Found | None] = [*things, *[None] * wanted]
    best: tuple[bool, ...] = (False,) * len(facts)
    for chosen in itertools.permutations(range(len(candidates)), wanted):
        matched = [candidates[i] for i in chosen]
        answers = tuple(_holds(fact, matched, len(things), background) for fact in facts)
        if sum(answers) > sum(best):
            best = answers
    return best


def _holds(fact: Fact, matched: Sequence[Found | None], count: int, background: str) -> bool:
    if fact.kind == "background":
        return background == fact.value
    if fact.kind == "count":
        return count == int(fact.value)
    thing = matched[fact.thing]
    if thing is None:
        return False
    if fact.kind in ("shape", "colour", "texture"):
        return getattr(thing, fact.kind) == fact.value
    other = matched[1 - fact.thing]
    if other is None:
        return False
    if fact.kind == "larger":
        ratio = thing.size / other.size
        return ratio >= LARGER_AREA_RATIO if fact.value == "yes" else ratio <= 1 / LARGER_AREA_RATIO
    return relation_of(thing, other) == fact.value


def relation_of(thing: Found, other: Found) -> str:
    """How one found thing stands to another, by the larger of the two offsets between their centres."""
    dx, dy = thing.x - other.x, thing.y - other.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def look(image: np.ndarray) -> tuple[str, list[Found]]:
    """Name the background and the things of a picture.

    Args:
        image: uint8 `[64, 64, 3]`.

    Returns:
        The background's name and the things, largest first, four at most.
    """
    pixels = image.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background_rgb = np.median(border, axis=0)
    background = list(BACKGROUNDS)[int(np.argmin(np.linalg.norm(_BACKGROUND_RGB - background_rgb, axis=1)))]
    foreground = np.linalg.norm(pixels - background_rgb, axis=2) > FOREGROUND_DISTANCE
    things = []
    for region in _regions(pixels, foreground):
        things.append(_describe(pixels, region))
    things.sort(key=lambda thing: -thing.area)
    return background, things[:4]


def _regions(pixels: np.ndarray, foreground: np.ndarray) -> list[np.ndarray]:
    """Connected foreground regions with holes filled; regions of two colours are parted along them."""
    labels, count = ndimage.label(foreground, structure=np.ones((3, 3)))
    regions = []
    for label in range(1, count + 1):
        region = labels == label
        if region.sum() < MIN_AREA:
            continue
        for part in _by_colour(pixels, region):
            regions.append(ndimage.binary_fill_holes(part))
    return regions


def _by_colour(pixels: np.ndarray, region: np.ndarray) -> list[np.ndarray]:
    names = _nearest_colour(pixels[region])[0]
    shares = np.bincount(names, minlength=len(COLOURS)) / len(names)
    major = np.flatnonzero(shares > 0.25)
    if len(major) < 2:
        return [region]
    parts = []
    for colour in major:
        mask = np.zeros_like(region)
        mask[region] = names == colour
        labels, count = ndimage.label(ndimage.binary_closing(mask, iterations=1) & region, structure=np.ones((3, 3)))
        if count:
            sizes = np.bincount(labels.ravel())[1:]
            if sizes.max() >= MIN_AREA:
                parts.append(labels == 1 + int(sizes.argmax()))
    # Colours that interleave (one thing of an odd hue) make scraps of every part: that is one thing, not two.
    solid = [p for p in parts if p.sum() > 0.5 * ndimage.binary_fill_holes(_hull(p)).sum()]
    return solid if len(solid) == len(parts) and len(parts) > 1 else [region]


def _hull(mask: np.ndarray) -> np.ndarray:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    return box


def _nearest_colour(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For pixels `[N, 3]`: index of the nearest palette colour at its best brightness, and that brightness."""
    length = np.einsum("cd,cd->c", _COLOUR_RGB, _COLOUR_RGB)
    brightness = np.clip(pixels @ _COLOUR_RGB.T / length, 0.25, 1.15)
    residual = np.linalg.norm(pixels[:, None, :] - brightness[..., None] * _COLOUR_RGB[None], axis=2)
    # Hue errors of dark pixels are small in RGB: compare them relative to the brightness.
    nearest = np.argmin(residual / np.sqrt(brightness), axis=1)
    return nearest, brightness[np.arange(len(pixels)), nearest]


def _describe(pixels: np.ndarray, region: np.ndarray) -> Found:
    ys, xs = np.nonzero(region)
    inner = ndimage.binary_erosion(region)
    body = inner if inner.sum() >= MIN_AREA // 2 else region
    names, brightness = _nearest_colour(pixels[body])
    bright = brightness > (1 + TEXTURE_SHADE) / 2
    votes = names[bright] if bright.sum() >= 8 else names
    colour_index = int(np.bincount(votes, minlength=len(COLOURS)).argmax())
    return Found(
        shape=_name_shape(region),
        colour=_trusted_colour(pixels[body][bright] if bright.sum() >= 8 else pixels[body], colour_index),
        texture=_name_texture(pixels, body, colour_index),
        x=float(xs.mean()),
        y=float(ys.mean()),
        area=float(region.sum()),
    )


def _trusted_colour(pixels: np.ndarray, index: int) -> str | None:
    """The palette colour's name, None where the pixels' median is far from every brightness of it."""
    median = np.median(pixels, axis=0)
    colour = _COLOUR_RGB[index]
    brightness = np.clip(median @ colour / (colour @ colour), 0.3, 1.15)
    return list(COLOURS)[index] if np.linalg.norm(median - brightness * colour) < 60 else None


def _name_texture(pixels: np.ndarray, body: np.ndarray, colour_index: int) -> str | None:
    colour = _COLOUR_RGB[colour_index]
    darkness = np.clip((1 - pixels @ colour / (colour @ colour)) / (1 - TEXTURE_SHADE), 0, 1)
    ys = np.nonzero(body)[0]
    values = darkness[body]
    if values.mean() < DARK_SHARE[0] or values.std() < 0.12:
        return "plain"
    if values.mean() > DARK_SHARE[1]:
        return None
    rows = np.bincount(ys)
    filled = rows > 0
    row_means = np.bincount(ys, values)[filled] / rows[filled]
    between = np.average((row_means - values.mean()) ** 2, weights=rows[filled])
    return "striped" if between / values.var() > STRIPE_RATIO else "dotted"


@functools.cache
def _templates() -> dict[str, np.ndarray]:
    """Each shape at radius 16 on a 64x64 grid, cropped to its bounding box and resampled to 24x24."""
    axis = np.arange(IMAGE_SIZE) - 31.5
    return {shape: _normalised(shape_mask(shape, axis[None], axis[:, None], 16.0)) for shape in SHAPES}


def _normalised(mask: np.ndarray, size: int = 24) -> np.ndarray:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].astype(np.float32)
    grid_y = (np.arange(size) + 0.5) / size * box.shape[0] - 0.5
    grid_x = (np.arange(size) + 0.5) / size * box.shape[1] - 0.5
    mesh = np.meshgrid(grid_y, grid_x, indexing="ij")
    return ndimage.map_coordinates(box, mesh, order=1, mode="nearest") > 0.5


def _name_shape(region: np.ndarray) -> str | None:
    rows, cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    if not 0.55 < height / width < 1.8:
        return None
    mask = _normalised(region)
    overlaps = {shape: (mask & t).sum() / (mask | t).sum() for shape, t in _templates().items()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= MIN_OVERLAP else None
