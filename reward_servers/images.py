"""Images out of a request's bytes: PNG or JPEG, looked at before they are decoded. Needs neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from reward_servers.gateway_options import Limits

FORMATS = ("PNG", "JPEG")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Pillow's modes of 8 bit or less that have one meaning as RGB."""


class Refused(ValueError):
    """A request that is not served; the message is one sentence for its sender.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, sentence: str) -> None:
        """Say what is wrong.

        Args:
            status: HTTP status.
            sentence: for the sender.
        """
        super().__init__(sentence)
        self.status = status


def read_images(files: Sequence[bytes], limits: Limits) -> list[np.ndarray]:
    """Decode images. All headers are read, and their sizes added up, before any pixel is decoded.

    Args:
        files: PNG or JPEG files.
        limits: what a request may hold.

    Returns:
        uint8 `[H, W, 3]` each. Pixels are taken as they are stored: grey and palettes become RGB, orientation tags
        are not followed.

    Raises:
        Refused: naming the first image that is empty, too large, damaged, of another format, with more than 8 bits a
            channel, or transparent.
    """
    opened, pixels = [], 0
    for number, data in enumerate(files):
        image = _open(data, number, limits)
        pixels += image.width * image.height
        if pixels > limits.max_pixels:
            raise Refused(
                413, f"the images have more than {limits.max_pixels:,} pixels together; send them in several requests"
            )
        opened.append(image)
    return [_decode(image, number) for number, image in enumerate(opened)]


def _open(data: bytes, number: int, limits: Limits) -> Image.Image:
    if not data:
        raise Refused(422, f"image {number} is empty; send a PNG or JPEG file")
    if len(data) > limits.max_image_bytes:
        raise Refused(413, f"image {number} has {len(data):,} bytes; {limits.max_image_bytes:,} are allowed")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, f"image {number} has too many pixels; {limits.max_image_pixels:,} are allowed") from error
    except Exception as error:  # whatever a hostile header makes Pillow raise
        raise Refused(422, f"image {number} is neither a PNG nor a JPEG file") from error
    if image.width * image.height > limits.max_image_pixels:
        raise Refused(
            413, f"image {number} has {image.width} × {image.height} pixels; {limits.max_image_pixels:,} are allowed"
        )
    if image.mode not in MODES:
        raise Refused(422, f"image {number} is of the kind {image.mode}; send 8-bit RGB or grey")
    return image


def _decode(image: Image.Image, number: int) -> np.ndarray:
    try:
        image.load()
        if image.mode in ("LA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            lowest, _ = image.getchannel("A").getextrema()
        else:
            lowest = 255
        pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise Refused(422, f"image {number} is damaged or cut off ({_reason(error)})") from error
    if lowest != 255:
        raise Refused(422, f"image {number} is transparent in places; send it on the background it should have")
    return pixels


def _reason(error: Exception) -> str:
    words = str(error).splitlines()
    return words[0][:100] if words else type(error).__name__


def png(image: np.ndarray) -> bytes:
    """Encode an image without loss.

    Args:
        image: uint8 `[H, W, 3]`, RGB.

    Returns:
        A PNG file.
    """
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
