"""Preference pairs, out of whatever keeps them: two images of one caption, one of them preferred."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from sharpening.data.rows import Row, Rows
from sharpening.data.source import Batch, DataFileError, ExampleError, Kind

WINNER, LOSER, CAPTION = "image_w", "image_l", "caption"
"""Columns that `write_pairs` writes."""
FIRST, SECOND, LABEL = "jpg_0", "jpg_1", "label_0"
"""Columns of Pick-a-Pic, which diffusers' DPO scripts read; the label is 1 where the first image is preferred, or 0."""


class PairFile:
    """Preference pairs, a row each; a row is read when it is asked for.

    Attributes:
        kind: "pairs".
        file: the rows.
        caption_column: column of the captions.
        resolution: height and width of the images that are handed out, in pixels.
        columns: what holds a pair: `image_w` and `image_l`, or `jpg_0`, `jpg_1` and `label_0`.
    """

    kind: Kind = "pairs"

    def __init__(self, data: str | Path | Rows, caption_column: str, resolution: int) -> None:
        """Open a file; no row is read.

        Args:
            data: the rows, or where they are, as `open_rows` takes it, with the columns `image_w` and `image_l`, or
                without them and with `jpg_0`, `jpg_1` and `label_0`; images are PNG, JPEG or WebP files.
            caption_column: column of the captions.
            resolution: height and width of the images that are handed out, in pixels.

        Raises:
            DataFileError: if the file cannot be opened or lacks a column.
        """
        self.file = data if isinstance(data, Rows) else open_rows(data)
        self.caption_column, self.resolution = caption_column, resolution
        names = self.file.schema.names
        layouts = [layout for layout in ((WINNER, LOSER), (FIRST, SECOND, LABEL)) if set(layout) <= set(names)]
        if not layouts:
            raise DataFileError(
                f"{self.file.path} has the columns {', '.join(names)}; preference pairs need {WINNER} and {LOSER}, "
                f"or {FIRST}, {SECOND} and {LABEL}"
            )
        self.columns: tuple[str, ...] = layouts[0]
        for column in self.columns[:2]:
            check_image_column(self.file, column)
        check_caption_column(self.file, caption_column)
        self.file.check_groups(self.columns)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.file)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some pairs; the images are not read.

        Args:
            indices: numbers of the rows, from 0.

        Returns:
            The captions, stripped, in the order of `indices`.
        """
        return captions(self.file, self.caption_column, indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some pairs with their captions.

        Args:
            indices: numbers of the rows, from 0.

        Returns:
            A batch with `k = 2`, the preferred image first.

        Raises:
            ExampleError: if a row is no pair: an image is missing or broken, both are the same, or none is preferred.
        """  # noqa: DOC502
        side = self.resolution
        return self.read(
            indices, (side, side), lambda contents, column, where: decode_image(contents, side, column, where)
        )

    def read(
        self, indices: Sequence[int], size: tuple[int, int], decoded: Callable[[bytes, str, str], np.ndarray]
    ) -> Batch:
        """Some pairs with their captions, of any size.

        Args:
            indices: numbers of the rows, from 0.
            size: height and width of the images that are handed out, in pixels.
            decoded: the image, uint8 `[height, width, 3]`, of a file's bytes, its column and the row's name.

        Returns:
            A batch with `k = 2`, the preferred image first.

        Raises:
            ExampleError: if a row is no pair: an image is missing or broken, both are the same, or none is preferred.
        """
        images = np.empty((len(indices), 2, *size, 3), np.uint8)
        for place, (index, row) in enumerate(zip(indices, self.file.rows(indices, self.columns), strict=True)):
            where = self.file.where(index)
            sides = self.sides(row, where)
            contents = [image_in(row, column, where) for column in sides]
            if contents[0] == contents[1]:
                raise ExampleError("equal images", f"{where} has the same image on both sides; leave the row out")
            for side, column in enumerate(sides):
                images[place, side] = decoded(contents[side], column, where)
        return Batch(self.prompts(indices), images)

    def sides(self, row: Row, where: str) -> tuple[str, str]:
        """Which image of a row is preferred.

        Args:
            row: the row, at least its `columns`.
            where: the row's name, for the error.

        Returns:
            Column of the preferred image, column of the other.

        Raises:
            ExampleError: if the label says neither.
        """
        first, second = self.columns[:2]
        if len(self.columns) == 2 or row[LABEL] == 1:
            return first, second
        if row[LABEL] == 0:
            return second, first
        if row[LABEL] == 0.5:
            raise ExampleError(
                "tie", f"{where} is a tie ({LABEL} is 0.5), which teaches no preference; leave the row out"
            )
        raise ExampleError(
            "no preference",
            f"{where} has {LABEL} {row[LABEL]!r}; write 1 ({first} preferred) or 0 ({second} preferred)",
        )


def write_pairs(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write preference pairs as a Parquet file that `PairFile` reads, images as PNG.

    Args:
        path: the file; its folder exists.
        rows: at least one, each with `image_w` (preferred) and `image_l`, uint8 `[H, W, 3]`, `caption`, and the same
            further columns as the first.
    """
    write_rows(path, rows, required=(WINNER, LOSER, CAPTION))
