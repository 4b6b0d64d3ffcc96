"""Images and their captions, out of whatever keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpening.data.columns import (
    captions,
    check_caption_column,
    check_image_column,
    decode_image,
    image_in,
)
from sharpening.data.opening import open_rows
from sharpening.data.parquet import write_rows
from sharpening.data.rows import Rows
from sharpening.data.source import Batch, Kind

IMAGE, CAPTION = "image", "text"
"""Columns that `write_images` writes; diffusers' training scripts read the same by default."""


class ImageFile:
    """Images with captions, a row each; a row is read when it is asked for.

    Attributes:
        kind: "images".
        file: the rows.
        image_column: column of the images.
        caption_column: column of the captions.
        resolution: height and width of the images that are handed out, in pixels.
    """

    kind: Kind = "images"

    def __init__(self, data: str | Path | Rows, image_column: str, caption_column: str, resolution: int) -> None:
        """Open a file; no row is read.

        Args:
            data: the rows, or where they are, as `open_rows` takes it.
            image_column: column of PNG, JPEG or WebP bytes, bare or in the struct `{bytes, path}` of `datasets`.
            caption_column: column of the captions.
            resolution: height and width of the images that are handed out, in pixels.

        Raises:
            DataFileError: if the file cannot be opened or lacks a column.
        """  # noqa: DOC502
        self.file = data if isinstance(data, Rows) else open_rows(data)
        self.image_column, self.caption_column, self.resolution = image_column, caption_column, resolution
        check_image_column(self.file, image_column)
        check_caption_column(self.file, caption_column)
        self.file.check_groups([image_column])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.file)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some images; the images are not read.

        Args:
            indices: numbers of the rows, from 0.

        Returns:
            The captions, stripped, in the order of `indices`.
        """
        return captions(self.file, self.caption_column, indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some images with their captions.

        Args:
            indices: numbers of the rows, from 0.

        Returns:
            A batch with `k = 1`.

        Raises:
            ExampleError: if a row has no caption or no image.
        """  # noqa: DOC502
        column, size = self.image_column, self.resolution
        images = np.empty((len(indices), 1, size, size, 3), np.uint8)
        for place, (index, row) in enumerate(zip(indices, self.file.rows(indices, [column]), strict=True)):
            where = self.file.where(index)
            images[place, 0] = decode_image(image_in(row, column, where), size, column, where)
        return Batch(self.prompts(indices), images)


def write_images(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write images with captions as a Parquet file that `ImageFile` reads, images as PNG.

    Args:
        path: the file; its folder exists.
        rows: at least one, each with `image`, uint8 `[H, W, 3]`, `text`, and the same further columns as the first.
    """
    write_rows(path, rows, required=(IMAGE, CAPTION))
