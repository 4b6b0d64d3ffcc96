"""Aspect buckets: images keep their shape, roughly, and those of one shape are learnt together (SDXL, appendix I)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image

from sharpening.data.columns import (
    FORMATS,
    captions,
    check_caption_column,
    check_image_column,
    image_in,
    opened,
)
from sharpening.data.pairs import PairFile
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


def bucket_sizes(resolution: int, step: int, largest: int | None = None) -> tuple[Size, ...]:
    """Shapes of about the area of a square.

    Args:
        resolution: side of the square, in pixels.
        step: what heights and widths are multiples of, in pixels.
        largest: the longest side that the model draws, in pixels; None where it has no limit.

    Returns:
        For each width the largest height that does not exceed the square's area, from tall to wide; the square is
        among them. Of several heights that share a width, and widths that share a height, the larger area stays.
    """
    found: dict[Size, None] = {}
    for width in range(step, int(resolution * WIDEST**0.5) + step, step):
        height = resolution * resolution // width // step * step
        for size in ((height, width), (width, height)):
            if min(size) >= step and max(size) <= min(WIDEST * min(size), largest or math.inf):
                found[size] = None
    kept = [
        size
        for size in found
        if not any(other != size and other[0] >= size[0] and other[1] >= size[1] for other in found)
    ]
    return tuple(sorted(kept, key=lambda size: size[1] / size[0]))


def step_of(resolution: int, unit: int = 8) -> int:
    """What heights and widths of buckets are multiples of.

    Args:
        resolution: side of the square, in pixels; a multiple of `unit`.
        unit: what the sides of the model's images are multiples of, in pixels: 8 where the denoiser takes any latent of
            a VAE that makes one latent pixel of 8.

    Returns:
        The largest multiple of it that divides the side and is no more than a sixteenth of it (SDXL's 64 at 1024); the
        unit itself where there is none.
    """
    fitting = (step for step in range(unit, resolution // 16 + 1, unit) if resolution % step == 0)
    return max(fitting, default=unit)


def nearest(height: float, width: float, sizes: Sequence[Size]) -> int:
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


class Buckets:
    """Rows sorted into buckets; a batch is of one bucket.

    Attributes:
        file: the rows.
        sizes: height and width of each bucket that has rows.
        counts: rows of each bucket; a bucket's rows are neighbours.
        left_out: rows without a readable image.
    """

    def __init__(
        self, rows: Rows, shapes: Float[np.ndarray, "row 2"], column: str, sizes: Sequence[Size], at_least: int
    ) -> None:
        """Sort the rows.

        Args:
            rows: the rows.
            shapes: height and width of each row's image, 0 where it cannot be read.
            column: where the image is, for the error.
            sizes: the buckets.
            at_least: rows that a bucket needs; those of a smaller one go to the nearest bucket that has as many.

        Raises:
            DataFileError: if no row has a readable image.
        """
        self.file = rows
        readable = np.flatnonzero(shapes[:, 0])
        self.left_out = len(shapes) - len(readable)
        if not len(readable):
            raise DataFileError(f"{rows.path} has no readable image in column {column!r}; name another column")
        distinct, inverse = np.unique(shapes[readable], axis=0, return_inverse=True)
        bucket = np.array([nearest(float(h), float(w), sizes) for h, w in distinct])[inverse.reshape(-1)]
        bucket = _merged(bucket, sizes, at_least)
        used = np.unique(bucket)
        self.sizes: tuple[Size, ...] = tuple(sizes[place] for place in used)
        self.counts = tuple(int((bucket == place).sum()) for place in used)
        self._order = readable[np.argsort(bucket, kind="stable")]
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._order)

    def _rows_of(self, indices: Sequence[int]) -> list[int]:
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"there are examples 0 to {len(self) - 1}, not {index}")
        return [int(self._order[index]) for index in indices]

    def _size_of(self, indices: Sequence[int]) -> Size:
        """The size of some rows' bucket."""
        buckets = {int(np.searchsorted(self._ends, index, side="right")) for index in indices}
        if len(buckets) != 1:
            raise ValueError(f"a batch is of one bucket, and these examples are of {len(buckets)}")
        return self.sizes[buckets.pop()]


class BucketedImages(Buckets):
    """Images with captions, ordered by bucket.

    Opening reads the size of every image once: from integer columns `width` and `height` where there are some, else
    from the head of each image file. Images without a readable head are left out.

    Attributes:
        kind: "images".
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
        """  # noqa: DOC502
        check_image_column(rows, image_column)
        check_caption_column(rows, caption_column)
        rows.check_groups([image_column])
        self._columns = (image_column, caption_column)
        super().__init__(rows, self._shapes(rows), image_column, sizes, at_least)

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
        places, size, column = self._rows_of(indices), self._size_of(indices), self._columns[0]
        images = np.empty((len(indices), 1, *size, 3), np.uint8)
        ids = np.empty((len(indices), 6), np.int64)
        for number, (place, row) in enumerate(zip(places, self.file.rows(places, [column]), strict=True)):
            where = self.file.where(place)
            images[number, 0], ids[number] = fit(opened(image_in(row, column, where), column, where), size)
        return Batch(captions(self.file, self._columns[1], places), images, ids)

    def _shapes(self, rows: Rows) -> Float[np.ndarray, "row 2"]:
        """Height and width of every image, 0 where it has no readable head."""
        names = rows.schema.names
        if not all(name in names and pa.types.is_integer(rows.column_type(name)) for name in SIDES):
            return heads(rows, self._columns[:1])[:, 0]
        shapes = np.zeros((len(rows), 2))
        for start in range(0, len(shapes), SCANNED):
            places = range(start, min(start + SCANNED, len(shapes)))
            for place, row in zip(places, rows.rows(places, list(SIDES)), strict=True):
                sides = [row[name] or 0 for name in SIDES]
                shapes[place] = sides if min(sides) > 0 else 0
        return shapes


class BucketedPairs(Buckets):
    """Preference pairs, ordered by bucket: both images of a pair are fitted to one.

    That is the bucket nearest to the mean of their two ratios, on the logarithmic scale. Opening reads the heads of all
    images; pairs of which one has no readable head are left out. No size ids come with a pair: its images are judged
    against each other under one condition, which says the same of both.

    Attributes:
        kind: "pairs".
    """

    kind: Kind = "pairs"

    def __init__(self, pairs: PairFile, sizes: Sequence[Size], at_least: int = 1) -> None:
        """Read the sizes and sort the pairs into buckets.

        Args:
            pairs: the pairs.
            sizes: the buckets.
            at_least: pairs that a bucket needs; those of a smaller one go to the nearest bucket that has as many.

        Raises:
            DataFileError: if no pair has two readable images.
        """  # noqa: DOC502
        self._pairs = pairs
        shapes = np.sqrt(heads(pairs.file, pairs.columns[:2]).prod(axis=1))
        super().__init__(pairs.file, shapes, pairs.columns[0], sizes, at_least)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some pairs; the images are not read.

        Args:
            indices: their places, from 0.

        Returns:
            The captions, in the order of `indices`.
        """
        return self._pairs.prompts(self._rows_of(indices))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some pairs of one bucket with their captions.

        Args:
            indices: their places, from 0.

        Returns:
            A batch with `k = 2` of the bucket's size, the preferred image first.

        Raises:
            ExampleError: if a row is no pair.
            ValueError: if they are not of one bucket.
        """  # noqa: DOC502
        size = self._size_of(indices)
        return self._pairs.read(
            self._rows_of(indices), size, lambda contents, column, where: fit(opened(contents, column, where), size)[0]
        )


def heads(rows: Rows, columns: Sequence[str]) -> Float[np.ndarray, "row column 2"]:
    """Sizes of images, from the heads of their files.

    Args:
        rows: the rows; they are read once, in their order.
        columns: columns of images.

    Returns:
        Height and width in pixels, EXIF orientation applied; 0 where an image has no readable head.
    """
    shapes = np.zeros((len(rows), len(columns), 2))
    for start in range(0, len(shapes), SCANNED):
        places = range(start, min(start + SCANNED, len(shapes)))
        for place, row in zip(places, rows.rows(places, list(columns)), strict=True):
            shapes[place] = [_head(row, column, rows.where(place)) for column in columns]
    return shapes


def _head(row: Row, column: str, where: str) -> Size:
    try:
        with Image.open(BytesIO(image_in(row, column, where)), formats=FORMATS) as image:
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
