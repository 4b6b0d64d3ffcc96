"""What stands in a data file's columns: captions, and images as the bytes of PNG, JPEG or WebP files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sharpening.data.rows import Row, Rows
from sharpening.data.source import DataFileError, ExampleError

FORMATS = ("PNG", "JPEG", "WEBP")
"""The only decoders that bytes from a file can reach."""


def check_caption_column(file: Rows, column: str) -> None:
    """Refuse a file that has no text in a column.

    Args:
        file: the rows.
        column: the column that should hold captions.

    Raises:
        DataFileError: if the column is absent or holds something else.
    """
    kind = file.column_type(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):  # several captions of an image, as in COCO
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataFileError(f"column {column!r} of {file.path} holds {kind}, not text; name the column of the captions")


def check_image_column(file: Rows, column: str) -> None:
    """Refuse a file that has no images in a column.

    Args:
        file: the rows.
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
        The caption, stripped; of several captions the first that is not blank.

    Raises:
        ExampleError: if there is none, or a blank one.
    """
    value = row[column]
    found = value if isinstance(value, list) else [value]
    caption = next((text.strip() for text in found if text and text.strip()), "")
    if not caption:
        raise ExampleError(
            "empty caption", f"{where} has no caption in column {column!r}; write one or leave the row out"
        )
    return caption


def captions(file: Rows, column: str, indices: Sequence[int]) -> list[str]:
    """Captions of some rows; no other column is read.

    Args:
        file: the rows.
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
        ExampleError: if there are none, here or in the file that the row names.
    """
    value = row[column]
    contents = value.get("bytes") if isinstance(value, dict) else value
    if not contents and isinstance(value, dict) and value.get("path"):
        try:
            contents = Path(value["path"]).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            message = f"{where} names the image {value['path']}, which cannot be read ({reason}); leave the row out"
            raise ExampleError("missing image", message) from None
    if not contents:
        raise ExampleError(
            "missing image",
            f"{where} has no image bytes in column {column!r}; write them there or leave the row out",
        )
    return contents


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
        ExampleError: if it cannot be decoded.
    """
    return np.asarray(_centre_square(opened(contents, column, where), resolution))


def opened(contents: bytes, column: str, where: str) -> Image.Image:
    """Decode an image as it is.

    Args:
        contents: the image file.
        column: the column it is from, for the error.
        where: the row's name, for the error.

    Returns:
        The image in RGB, upright as its EXIF data say.

    Raises:
        ExampleError: if it cannot be decoded.
    """
    try:
        with Image.open(BytesIO(contents), formats=FORMATS) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        message = f"{where} has no whole PNG, JPEG or WebP image in column {column!r}; leave the row out"
        raise ExampleError("corrupt image", message) from error


def _centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """`Resize(resolution, LANCZOS)`, then `CenterCrop(resolution)`, rounded as torchvision rounds."""
    short = min(image.size)
    width, height = (int(resolution * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    return image.crop((left, top, left + resolution, top + resolution))
