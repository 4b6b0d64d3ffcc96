"""Draws scenes: 64x64 RGB, supersampled, every pixel a function of the scene alone."""

from __future__ import annotations

import numpy as np

from sharpening.shapes.scene import BACKGROUNDS, COLOURS, IMAGE_SIZE, TEXTURE_SHADE, Scene, Thing

STRIPE_PERIOD = 6.0
DOT_PERIOD = 8.0
DOT_RADIUS = 2.5


def shape_mask(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Which points lie inside the shape.

    Args:
        shape: one of `SHAPES`.
        x: horizontal offsets from the centre, in pixels, any shape.
        y: vertical offsets from the centre (downwards), broadcastable with `x`.
        radius: radius of the circle of about the same area, in pixels.

    Returns:
        Boolean array of the broadcast shape.

    Raises:
        ValueError: for an unknown shape.
    """
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        half = 0.89 * radius
        return (np.abs(x) <= half) & (np.abs(y) <= half)
    if shape == "triangle":
        # Upright, of about the circle's area; the centroid lies at the centre.
        height = 1.9 * radius
        half_base = 1.08 * radius
        from_top = y + 2 / 3 * height
        return (from_top >= 0) & (from_top <= height) & (np.abs(x) <= half_base * from_top / height)
    if shape == "cross":
        arm, width = 1.05 * radius, 0.4 * radius
        return ((np.abs(x) <= width) & (np.abs(y) <= arm)) | ((np.abs(y) <= width) & (np.abs(x) <= arm))
    raise ValueError(f"unknown shape {shape!r}")


def texture_mask(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of a thing are drawn in the darker shade; offsets in pixels from its centre."""
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    if texture == "striped":
        return np.broadcast_to((y / STRIPE_PERIOD) % 1.0 < 0.5, np.broadcast_shapes(x.shape, y.shape))
    if texture == "dotted":
        row = np.round(y / DOT_PERIOD)
        shifted = x - (row % 2) * DOT_PERIOD / 2
        dx = shifted - np.round(shifted / DOT_PERIOD) * DOT_PERIOD
        dy = y - row * DOT_PERIOD
        return dx**2 + dy**2 <= DOT_RADIUS**2
    raise ValueError(f"unknown texture {texture!r}")


def render(scene: Scene, supersample: int = 4) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: what to draw; later things cover earlier ones.
        supersample: points per pixel along each axis.

    Returns:
        uint8 image, `[64, 64, 3]`.
    """
    fine = IMAGE_SIZE * supersample
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / supersample
    canvas = np.empty((fine, fine, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        _draw(canvas, axis, thing, supersample)
    image = canvas.reshape(IMAGE_SIZE, supersample, IMAGE_SIZE, supersample, 3).mean(axis=(1, 3))
    return np.round(image).astype(np.uint8)


def _draw(canvas: np.ndarray, axis: np.ndarray, thing: Thing, supersample: int) -> None:
    reach = 1.4 * thing.radius
    lo = [max(0, int((c - reach) * supersample)) for c in (thing.x, thing.y)]
    hi = [min(len(axis), int((c + reach) * supersample) + 1) for c in (thing.x, thing.y)]
    x = axis[None, lo[0] : hi[0]] - np.float32(thing.x)
    y = axis[lo[1] : hi[1], None] - np.float32(thing.y)
    inside = shape_mask(thing.shape, x, y, thing.radius)
    colour = np.array(COLOURS[thing.colour], dtype=np.float32)
    shade = np.where(texture_mask(thing.texture, x, y)[..., None], colour * TEXTURE_SHADE, colour)
    window = canvas[lo[1] : hi[1], lo[0] : hi[0]]
    window[inside] = shade[inside]
