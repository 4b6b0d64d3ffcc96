"""How images become what a model reads: resized, cropped and normalised, on batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's CLIP was trained on, in 0..1; most models built on a CLIP or BLIP keep them."""


class Preprocessing(nn.Module):
    """A model's evaluation transform, the same for every image of a batch and differentiable.

    Attributes:
        size: (height, width) the model reads, in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | Sequence[int],
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resize_mode: str = "shortest",
        interpolation: str = "bicubic",
        fill_color: int = 0,
        floor_crop: bool = False,
        exact: bool = False,
    ) -> None:
        """Describe the transform.

        Args:
            size: of the model's images, in pixels; one number, or height and width.
            mean: of each channel, of images in 0..1.
            std: of each channel, of images in 0..1.
            resize_mode: "shortest": resize the shorter edge and crop the centre; "longest": resize the longer edge
                and pad; "squash".
            interpolation: "bicubic" or "bilinear".
            fill_color: of the padding, 0 to 255.
            floor_crop: crop as transformers does, which rounds the first row and column down.
            exact: resize without rounding to 8 bit and without cutting off what bicubic overshoots.
        """
        super().__init__()
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self._mode, self._fill = resize_mode, fill_color
        self._linear = interpolation == "bilinear"
        self._floor_crop, self._exact = floor_crop, exact
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @classmethod
    def of_open_clip(cls, config: Mapping[str, Any], exact: bool = False) -> Preprocessing:
        """The transform that open_clip keeps with a model.

        Args:
            config: its `preprocess_cfg`.
            exact: see `__init__`.

        Returns:
            The transform.
        """
        return cls(
            config["size"], config["mean"], config["std"], config.get("resize_mode") or "shortest",
            config.get("interpolation") or "bicubic", config.get("fill_color") or 0, exact=exact,
        )  # fmt: skip

    def forward(self, pixels: Num[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 rows columns"]:
        """Preprocess images.

        Args:
            pixels: in 0..255, uint8 or float32.

        Returns:
            float32 of the model's size.
        """
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = self._resize(pixels.float() if self._exact else pixels)
        return pixels.float().div(255.0).sub(self.mean).div(self.std)

    def _resize(self, pixels: Tensor) -> Tensor:
        """Images of the model's size; floats are not rounded, but kept in 0..255 unless the transform is exact."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F  # its uint8 kernels round as PIL does

        interpolation = InterpolationMode.BILINEAR if self._linear else InterpolationMode.BICUBIC
        pixels = F.resize(pixels, self._resized(*pixels.shape[-2:]), interpolation, antialias=True)
        if pixels.is_floating_point() and not self._exact:
            pixels = pixels.clamp(0, 255)
        return self._crop(pixels)

    def _resized(self, height: int, width: int) -> list[int]:
        """What torchvision is asked for, before cropping or padding."""
        size = self.size
        if self._mode == "squash":
            return list(size)
        if self._mode == "shortest" and size[0] == size[1]:
            return [size[0]]  # torchvision rounds the longer edge down
        ratios = (height / size[0], width / size[1])
        ratio = min(ratios) if self._mode == "shortest" else max(ratios)
        return [round(height / ratio), round(width / ratio)]

    def _crop(self, pixels: Tensor) -> Tensor:
        from open_clip.transform import center_crop_or_pad

        height, width = pixels.shape[-2:]
        if self._floor_crop and height >= self.size[0] and width >= self.size[1]:
            top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
            return pixels[..., top : top + self.size[0], left : left + self.size[1]]
        return center_crop_or_pad(pixels, self.size, fill=self._fill)
