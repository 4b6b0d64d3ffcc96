"""Aspect buckets: images keep their shape, roughly, and those of one shape are learnt together (SDXL, appendix I)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
from PIL import Image

from sharpening.data.columns import (
    FORMATS,
    captions,
    check_caption_column,
    check_image_column,
    image_in,
    opened,
)
from sharpening.data.rows import Row, Rows
from sharpening.data.source import Batch, DataFileError, ExampleError, Kind

WIDEST = 2.0
"""Buckets go from this ratio of width and height to its inverse."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations under which width and height change places."""
SCANNED = 64
"""Rows whose sizes are read at a time."""

SIDES = ("height", "width")
"""Columns that tell sizes."""

Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """Shapes of about the area of a square.

    Args:
        resolution: side of the square, in pixels.
        step: what heights and widths are multiples of, in pixels.

    Returns:
        For each width the largest height that does not exceed the square's area, from tall to wide; the square is
        among them. Of several heights that share a width, and widths that share a height, the larger area stays.
    """
    found: dict[Size, None] = {}
    for width in range(step, int(resolution * WIDEST**0.5) + step, step):
        height = resolution * resolution // width // step * step
        for size in ((height, width), (width, height)):
            if min(size) >= step and max(size) <= WIDEST * min(size):
                found[size] = None
    largest = [
        size
        for size in found
        if not any(other != size and other[0] >= size[0] and other[1] >= size[1] for other in found)
    ]
    return tuple(sorted(largest, key=lambda size: size[1] / size[0]))


def step_of(resolution: int) -> int:
    """What heights and widths of buckets are multiples of.

    Args:
        resolution: side of the square, in pixels.

    Returns:
        A sixteenth of it (SDXL's 64 at 1024), in multiples of 8, which a VAE makes one latent pixel of.
    """
    return max(8, resolution // 16 // 8 * 8)


def nearest(height: int, width: int, sizes: Sequence[Size]) -> int:
    """The bucket of an image.

    Args:
        height: the image's, in pixels.
        width: the image's, in pixels.
        sizes: the buckets.

    Returns:
        Place of the bucket whose ratio is nearest on a logarithmic scale.
    """
    ratio = math.log(width / height)
    return min(range(len(sizes)), key=lambda place: abs(math.log(sizes[place][1] / sizes[place][0]) - ratio))


def fit(image: Image.Image, size: Size) -> tuple[np.ndarray, tuple[int, ...]]:
    """Scale an image until it covers a bucket (Lanczos), and cut the middle out.

    Args:
        image: the image, RGB.
        size: height and width of the bucket.

    Returns:
        uint8 `[height, width, 3]`, and SDXL's size ids: height and width of the original, top and left of the cut in
        the scaled image, height and width of the bucket, in pixels.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    resized = image.resize(scaled, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))
    return np.asarray(resized), (image.height, image.width, top, left, height, width)


class BucketedImages:
    """Images with captions, ordered by bucket; a batch is of one bucket.

    Opening reads the size of every image once: from integer columns `width` and `height` where there are some, else
    from the head of each image file. Images without a readable head are left out.

    Attributes:
        kind: "images".
        file: the rows.
        sizes: height and width of each bucket that has images.
        counts: images of each bucket; a bucket's images are neighbours.
        left_out: images without a readable head.
    """

    kind: Kind = "images"

    def __init__(
        self, rows: Rows, image_column: str, caption_column: str, sizes: Sequence[Size], at_least: int = 1
    ) -> None:
        """Read the sizes and sort the images into buckets.

        Args:
            rows: the rows.
            image_column: column of the images.
            caption_column: column of the captions.
            sizes: the buckets.
            at_least: images that a bucket needs; those of a smaller one go to the nearest bucket that has as many.

        Raises:
            DataFileError: if a column is missing, or no image has a readable head.
        """
        check_image_column(rows, image_column)
        check_caption_column(rows, caption_column)
        rows.check_groups([image_column])
        self.file, self._columns = rows, (image_column, caption_column)
        shapes = self._shapes()
        readable = np.flatnonzero(shapes[:, 0])
        self.left_out = len(shapes) - len(readable)
        if not len(readable):
            raise DataFileError(f"{rows.path} has no readable image in column {image_column!r}; name another column")
        distinct, inverse = np.unique(shapes[readable], axis=0, return_inverse=True)
        bucket = np.array([nearest(int(h), int(w), sizes) for h, w in distinct])[inverse.reshape(-1)]
        bucket = _merged(bucket, sizes, at_least)
        used = np.unique(bucket)
        self.sizes: tuple[Size, ...] = tuple(sizes[place] for place in used)
        self.counts = tuple(int((bucket == place).sum()) for place in used)
        self._order = readable[np.argsort(bucket, kind="stable")]
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._order)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some images; the images are not read.

        Args:
            indices: their places, from 0.

        Returns:
            The captions, in the order of `indices`.
        """
        return captions(self.file, self._columns[1], self._rows_of(indices))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some images of one bucket with their captions.

        Args:
            indices: their places, from 0.

        Returns:
            A batch with `k = 1` of the bucket's size, and with size ids.

        Raises:
            ExampleError: if a row has no caption or no image.
            ValueError: if they are not of one bucket.
        """  # noqa: DOC502
        places = self._rows_of(indices)
        buckets = {int(np.searchsorted(self._ends, index, side="right")) for index in indices}
        if len(buckets) != 1:
            raise ValueError(f"a batch is of one bucket, and these examples are of {len(buckets)}")
        size, column = self.sizes[buckets.pop()], self._columns[0]
        images = np.empty((len(indices), 1, *size, 3), np.uint8)
        ids = np.empty((len(indices), 6), np.int64)
        for number, (place, row) in enumerate(zip(places, self.file.rows(places, [column]), strict=True)):
            where = self.file.where(place)
            images[number, 0], ids[number] = fit(opened(image_in(row, column, where), column, where), size)
        return Batch(captions(self.file, self._columns[1], places), images, ids)

    def _rows_of(self, indices: Sequence[int]) -> list[int]:
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"there are examples 0 to {len(self) - 1}, not {index}")
        return [int(self._order[index]) for index in indices]

    def _shapes(self) -> np.ndarray:
        """Height and width of every image, 0 where it has no readable head: int32 `[N, 2]`."""
        names = self.file.schema.names
        told = all(name in names and pa.types.is_integer(self.file.column_type(name)) for name in SIDES)
        columns = list(SIDES) if told else [self._columns[0]]
        shapes = np.zeros((len(self.file), 2), np.int32)
        for start in range(0, len(shapes), SCANNED):
            places = range(start, min(start + SCANNED, len(shapes)))
            for place, row in zip(places, self.file.rows(places, columns), strict=True):
                if told:
                    sides = [row[name] or 0 for name in SIDES]
                    shapes[place] = sides if min(sides) > 0 else 0
                else:
                    shapes[place] = self._head(row, place)
        return shapes

    def _head(self, row: Row, place: int) -> Size:
        column = self._columns[0]
        try:
            with Image.open(BytesIO(image_in(row, column, self.file.where(place))), formats=FORMATS) as image:
                # Without the check, Pillow decodes a PNG to look for EXIF data behind its pixels.
                turned = "exif" in image.info and image.getexif().get(0x0112) in TURNED
                return (image.width, image.height) if turned else (image.height, image.width)
        except ExampleError:
            return (0, 0)
        except Exception:  # decoders raise whatever broken bytes lead them to
            return (0, 0)


def _merged(bucket: np.ndarray, sizes: Sequence[Size], at_least: int) -> np.ndarray:
    """Buckets of images after those of small buckets went to the nearest large one; all to the fullest if none is."""
    counts = np.bincount(bucket, minlength=len(sizes))
    large = [place for place in range(len(sizes)) if counts[place] >= at_least] or [int(counts.argmax())]
    kept = [sizes[place] for place in large]
    towards = [place if place in large else large[nearest(*size, kept)] for place, size in enumerate(sizes)]
    return np.array(towards)[bucket]
