"""Preference pairs out of a Parquet file: two images of one caption, one of them preferred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpening.data.columns import (
    caption_in,
    captions,
    check_caption_column,
    check_image,
    check_image_column,
    decode_image,
    image_in,
)
from sharpening.data.parquet import Row, RowFile, write_rows
from sharpening.data.source import Batch, DataFileError, Kind

WINNER, LOSER, CAPTION = "image_w", "image_l", "caption"
"""Columns that `write_pairs` writes."""
FIRST, SECOND, LABEL = "jpg_0", "jpg_1", "label_0"
"""Columns of Pick-a-Pic, which diffusers' DPO scripts read; the label is 1 where the first image is preferred, or 0."""


class PairFile:
    """Preference pairs, a row each; a row group is read when one of its rows is asked for.

    Attributes:
        kind: "pairs".
        file: the rows.
        caption_column: column of the captions.
        resolution: height and width of the images that are handed out, in pixels.
        columns: what holds a pair: `image_w` and `image_l`, or `jpg_0`, `jpg_1` and `label_0`.
    """

    kind: Kind = "pairs"

    def __init__(self, path: str | Path, caption_column: str, resolution: int) -> None:
        """Open a file; no row is read.

        Args:
            path: a Parquet file with the columns `image_w` and `image_l`, or without them and with `jpg_0`, `jpg_1` and
                `label_0`; images are PNG, JPEG or WebP bytes, bare or in the struct `{bytes, path}` of `datasets`.
            caption_column: column of the captions.
            resolution: height and width of the images that are handed out, in pixels.

        Raises:
            DataFileError: if the file cannot be opened or lacks a column.
        """
        self.file = RowFile(path)
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
            DataFileError: if a row is no pair.
        """  # noqa: DOC502
        size = self.resolution
        images = np.empty((len(indices), 2, size, size, 3), np.uint8)
        for place, (index, row) in enumerate(zip(indices, self.file.rows(indices, self.columns), strict=True)):
            where = self.file.where(index)
            for side, column in enumerate(self.sides(row, where)):
                images[place, side] = decode_image(image_in(row, column, where), size, column, where)
        return Batch(self.prompts(indices), images)

    def sides(self, row: Row, where: str) -> tuple[str, str]:
        """Which image of a row is preferred.

        Args:
            row: the row, at least its `columns`.
            where: the row's name, for the error.

        Returns:
            Column of the preferred image, column of the other.

        Raises:
            DataFileError: if the label says neither.
        """
        first, second = self.columns[:2]
        if len(self.columns) == 2 or row[LABEL] == 1:
            return first, second
        if row[LABEL] == 0:
            return second, first
        if row[LABEL] == 0.5:
            raise DataFileError(f"{where} is a tie ({LABEL} is 0.5), which teaches no preference; leave the row out")
        raise DataFileError(
            f"{where} has {LABEL} {row[LABEL]!r}; write 1 ({first} preferred) or 0 ({second} preferred)"
        )


def check_pairs(source: PairFile) -> None:
    """Read a file through once, in bounded memory, and refuse what a run would stumble over.

    Args:
        source: the opened file.

    Raises:
        DataFileError: for the first row without a caption, with a side that is missing or cannot be decoded, with the
            same image on both sides, or with no side preferred.
    """
    for index, row in enumerate(source.file.scan([*source.columns, source.caption_column])):
        where = source.file.where(index)
        caption_in(row, source.caption_column, where)
        columns = source.sides(row, where)
        winner, loser = (image_in(row, column, where) for column in columns)
        if winner == loser:
            raise DataFileError(f"{where} has the same image on both sides; leave the row out")
        for contents, column in zip((winner, loser), columns, strict=True):
            check_image(contents, column, where)


def write_pairs(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write preference pairs as a Parquet file that `PairFile` reads, images as PNG.

    Args:
        path: the file; its folder exists.
        rows: at least one, each with `image_w` (preferred) and `image_l`, uint8 `[H, W, 3]`, `caption`, and the same
            further columns as the first.
    """
    write_rows(path, rows, required=(WINNER, LOSER, CAPTION))
