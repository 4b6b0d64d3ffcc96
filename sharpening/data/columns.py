"""What stands in a data file's columns: captions, and images as the bytes of PNG, JPEG or WebP files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sharpening.data.parquet import Row, RowFile
from sharpening.data.source import DataFileError

FORMATS = ("PNG", "JPEG", "WEBP")
"""The only decoders that bytes from a file can reach."""


def check_caption_column(file: RowFile, column: str) -> None:
    """Refuse a file that has no text in a column.

    Args:
        file: the file.
        column: the column that should hold captions.

    Raises:
        DataFileError: if the column is absent or holds something else.
    """
    kind = file.column_type(column)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataFileError(f"column {column!r} of {file.path} holds {kind}, not text; name the column of the captions")


def check_image_column(file: RowFile, column: str) -> None:
    """Refuse a file that has no images in a column.

    Args:
        file: the file.
        column: the column that should hold image files: bare bytes, or the struct `{bytes, path}` of `datasets`.

    Raises:
        DataFileError: if the column is absent or holds something else.
    """
    kind = file.column_type(column)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataFileError(
            f"column {column!r} of {file.path} holds {kind}, not image bytes; name a column of PNG or JPEG bytes"
        )


def caption_in(row: Row, column: str, where: str) -> str:
    """Caption of a row.

    Args:
        row: the row.
        column: the column of the captions.
        where: the row's name, for the error.

    Returns:
        The caption, stripped.

    Raises:
        DataFileError: if there is none, or a blank one.
    """
    caption = (row[column] or "").strip()
    if not caption:
        raise DataFileError(f"{where} has no caption in column {column!r}; write one or leave the row out")
    return caption


def captions(file: RowFile, column: str, indices: Sequence[int]) -> list[str]:
    """Captions of some rows; no other column is read.

    Args:
        file: the file.
        column: the column of the captions.
        indices: numbers of the rows, from 0.

    Returns:
        The captions, stripped, in the order of `indices`.
    """
    rows = file.rows(indices, [column])
    return [caption_in(row, column, file.where(index)) for index, row in zip(indices, rows, strict=True)]


def image_in(row: Row, column: str, where: str) -> bytes:
    """Image file of a row, still encoded.

    Args:
        row: the row.
        column: a column of images.
        where: the row's name, for the error.

    Returns:
        The bytes.

    Raises:
        DataFileError: if there are none.
    """
    value = row[column]
    contents = value["bytes"] if isinstance(value, dict) else value
    if not contents:
        raise DataFileError(f"{where} has no image bytes in column {column!r}; write them there or leave the row out")
    return contents


def check_image(contents: bytes, column: str, where: str) -> None:
    """Look at an image file without decoding its pixels: header, and checksums where the format has them.

    Args:
        contents: the image file.
        column: the column it is from, for the error.
        where: the row's name, for the error.

    Raises:
        DataFileError: if it is no PNG, JPEG or WebP file.
    """
    try:
        with Image.open(BytesIO(contents), formats=FORMATS) as image:
            image.verify()
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise DataFileError(_undecodable(column, where)) from error


def decode_image(contents: bytes, resolution: int, column: str, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image as diffusers' training scripts do: short side to the resolution (Lanczos), centre crop.

    Args:
        contents: the image file.
        resolution: height and width of the result, in pixels.
        column: the column it is from, for the error.
        where: the row's name, for the error.

    Returns:
        RGB pixels.

    Raises:
        DataFileError: if it cannot be decoded.
    """
    try:
        with Image.open(BytesIO(contents), formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise DataFileError(_undecodable(column, where)) from error
    return np.asarray(_centre_square(upright, resolution))


def _undecodable(column: str, where: str) -> str:
    return f"{where} has no whole PNG, JPEG or WebP image in column {column!r}; leave the row out"


def _centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """`Resize(resolution, LANCZOS)`, then `CenterCrop(resolution)`, rounded as torchvision rounds."""
    short = min(image.size)
    width, height = (int(resolution * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    return image.crop((left, top, left + resolution, top + resolution))
