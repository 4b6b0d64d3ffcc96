"""Sample grids: images with their captions, and a mark for each fact that holds or does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG = (26, 135, 84), (200, 45, 40)
PAPER, INK, SOFT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
Facts = Sequence[Sequence[bool] | None]


@dataclass(frozen=True)
class GridStyle:
    """Measures of a grid, in pixels.

    Attributes:
        image: side of an image after enlargement; images are enlarged by whole factors, never shrunk below theirs.
        columns: cells in a row.
        gap: space around cells.
        font: height of the captions' font.
        lines: caption lines kept; longer captions end in an ellipsis.
        mark: side of a fact's mark.
    """

    image: int = 192
    columns: int = 6
    gap: int = 12
    font: int = 13
    lines: int = 3
    mark: int = 15

    @property
    def line_height(self) -> int:
        """Height of a caption line."""
        return self.font + 4

    @property
    def caption_height(self) -> int:
        """Height of the caption."""
        return self.lines * self.line_height + 6

    @property
    def note_height(self) -> int:
        """Height of the line between marks and caption."""
        return self.line_height + 3

    @property
    def marks_height(self) -> int:
        """Height of the row of marks beneath an image."""
        return self.mark + 8


STYLE = GridStyle()


def sample_grid(
    images: np.ndarray, captions: Sequence[str], facts: Facts | None = None, title: str = "", style: GridStyle = STYLE,
    notes: Sequence[str] | None = None,
) -> Image.Image:  # fmt: skip
    """Lay out images with their captions and marks.

    Args:
        images: uint8 `[N, H, W, 3]`.
        captions: N prompts.
        facts: for each image the verifier's answers, a mark each; `None` for an image without any.
        title: a line above the grid.
        style: measures.
        notes: for each image a line between marks and caption, such as its reward.

    Returns:
        The grid.

    Raises:
        ValueError: if there are no images, or not as many captions, facts and notes as images.
    """
    if len(images) == 0 or any(len(told) != len(images) for told in (captions, facts, notes) if told is not None):
        raise ValueError(f"{len(images)} images, {len(captions)} captions: a grid needs at least one, equally many")
    columns = min(style.columns, len(images))
    rows = -(-len(images) // columns)
    marks = style.marks_height if facts is not None else 0
    side, noted = _enlarged(images[0], style).height, style.note_height if notes is not None else 0
    cell = (_enlarged(images[0], style).width + style.gap, side + marks + noted + style.caption_height + style.gap)
    top = _title_height(title, style)
    canvas = Image.new("RGB", (style.gap + columns * cell[0], top + style.gap + rows * cell[1]), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_title(draw, title, style)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = style.gap + number % columns * cell[0]
        upper = top + style.gap + number // columns * cell[1]
        answers = facts[number] if facts is not None else None
        _draw_image(canvas, draw, image, answers, left, upper, style)
        if notes is not None:
            _draw_note(draw, notes[number], left, upper + side + marks, style)
        _draw_caption(draw, caption, left, upper + side + marks + noted, cell[0] - style.gap, style)
    return canvas


def comparison_grid(
    before: np.ndarray,
    after: np.ndarray,
    captions: Sequence[str],
    facts_before: Facts | None = None,
    facts_after: Facts | None = None,
    title: str = "",
    style: GridStyle = STYLE,
    notes: Sequence[tuple[str, str]] | None = None,
) -> Image.Image:
    """Lay out pairs of images, before and after at the same seed, side by side with their caption beneath.

    Args:
        before: uint8 `[N, H, W, 3]`.
        after: uint8 `[N, H, W, 3]`.
        captions: N prompts.
        facts_before: verifier's answers before, as in `sample_grid`.
        facts_after: verifier's answers after.
        title: a line above the grid.
        style: measures; `columns` counts single images, so half as many pairs stand in a row.
        notes: for each pair a line beneath either image, such as its reward.

    Returns:
        The grid.

    Raises:
        ValueError: if the two sides, the captions or the notes differ in number.
    """
    noted = style.note_height if notes is not None else 0
    if not len(before) == len(after) == len(captions) == len(notes or captions) or len(before) == 0:
        raise ValueError(f"{len(before)} before, {len(after)} after, {len(captions)} captions: must be equally many")
    columns = min(max(1, style.columns // 2), len(before))
    rows = -(-len(before) // columns)
    marked = facts_before is not None or facts_after is not None
    marks = style.marks_height if marked else 0
    first = _enlarged(before[0], style)
    inner = style.gap // 2
    pair = 2 * first.width + inner
    cell = (pair + 2 * style.gap, first.height + marks + noted + style.caption_height + style.gap)
    head = style.line_height
    top = _title_height(title, style) + head
    canvas = Image.new("RGB", (style.gap + columns * cell[0], top + style.gap + rows * cell[1]), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_title(draw, title, style)
    for number, caption in enumerate(captions):
        left = style.gap + number % columns * cell[0]
        upper = top + style.gap + number // columns * cell[1]
        for side, images, facts in ((0, before, facts_before), (1, after, facts_after)):
            answers = facts[number] if facts is not None else None
            place = left + side * (first.width + inner)
            _draw_image(canvas, draw, images[number], answers, place, upper, style)
            if notes is not None:
                _draw_note(draw, notes[number][side], place, upper + first.height + marks, style)
        if number < columns:
            for side, word in enumerate(("before", "after")):
                corner = (left + side * (first.width + inner), upper - head)
                draw.text(corner, word, fill=SOFT, font=ImageFont.load_default(style.font))
        _draw_caption(draw, caption, left, upper + first.height + marks + noted, pair, style)
    return canvas


def mark_boxes(count: int, left: int, upper: int, style: GridStyle = STYLE) -> list[tuple[int, int, int, int]]:
    """Where the marks of one image are drawn.

    Args:
        count: number of facts.
        left: left edge of the image.
        upper: lower edge of the image.
        style: measures.

    Returns:
        A box (left, upper, right, lower) a mark, in pixels, right and lower edge included.
    """
    step = style.mark + 4
    return [(left + i * step, upper + 4, left + i * step + style.mark, upper + 4 + style.mark) for i in range(count)]


def _enlarged(image: np.ndarray, style: GridStyle) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image))
    factor = max(1, style.image // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _draw_image(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, image: np.ndarray, facts: Sequence[bool] | None, left: int,
    upper: int, style: GridStyle,
) -> None:  # fmt: skip
    picture = _enlarged(image, style)
    canvas.paste(picture, (left, upper))
    if not facts:
        return
    for holds, box in zip(facts, mark_boxes(len(facts), left, upper + picture.height, style), strict=True):
        _draw_mark(draw, bool(holds), box)
    frame = (left - 2, upper - 2, left + picture.width + 1, upper + picture.height + 1)
    draw.rectangle(frame, outline=RIGHT if all(facts) else WRONG, width=2)


def _draw_mark(draw: ImageDraw.ImageDraw, holds: bool, box: tuple[int, int, int, int]) -> None:
    """A green disc with a tick or a red one with a cross: the shape says it to those who cannot tell the colours."""
    draw.ellipse(box, fill=RIGHT if holds else WRONG)
    left, upper, size = box[0], box[1], box[2] - box[0]

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * size, upper + y * size

    if holds:
        draw.line([at(0.24, 0.52), at(0.43, 0.72), at(0.78, 0.3)], fill=PAPER, width=2)
    else:
        draw.line([at(0.28, 0.28), at(0.72, 0.72)], fill=PAPER, width=2)
        draw.line([at(0.72, 0.28), at(0.28, 0.72)], fill=PAPER, width=2)


def _wrap(draw: ImageDraw.ImageDraw, text: str, width: int, style: GridStyle) -> list[str]:
    """Lines no wider than `width` pixels, at most `style.lines` of them."""
    font = ImageFont.load_default(style.font)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > style.lines:
        lines = lines[: style.lines]
        while lines[-1] and draw.textlength(f"{lines[-1]}...", font=font) > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = f"{lines[-1].rstrip()}..."
    return lines


def _draw_caption(draw: ImageDraw.ImageDraw, caption: str, left: int, upper: int, width: int, style: GridStyle) -> None:
    for number, line in enumerate(_wrap(draw, caption, width, style)):
        place = (left, upper + 3 + number * style.line_height)
        draw.text(place, line, fill=INK, font=ImageFont.load_default(style.font))


def _draw_note(draw: ImageDraw.ImageDraw, note: str, left: int, upper: int, style: GridStyle) -> None:
    draw.text((left, upper + 3), note, fill=SOFT, font=ImageFont.load_default(style.font))


def _title_height(title: str, style: GridStyle) -> int:
    return style.line_height + 8 if title else 0


def _draw_title(draw: ImageDraw.ImageDraw, title: str, style: GridStyle) -> None:
    if title:
        draw.text((style.gap, style.gap // 2), title, fill=INK, font=ImageFont.load_default(style.font + 3))
