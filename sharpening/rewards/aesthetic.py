"""LAION's aesthetic predictors: how much people like an image, whatever the prompt asks.

Both read OpenAI's CLIP ViT-L/14 and were trained on people's ratings from 1 to 10. LAION's first is one linear layer
(`github.com/LAION-AI/aesthetic-predictor`, `sa_0_4_vit_l_14_linear.pth`). The improved one is five of them
(`github.com/christophschuhmann/improved-aesthetic-predictor`, `simple_inference.py`), without activations in its
newest form and with ReLU in `ava+logos-l14-reluMSE.pth`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sharpening.rewards.aesthetic_files import ARCHITECTURE, HEAD, LINEAR, OPENAI, RELU, head_layout
from sharpening.rewards.clip import load_open_clip
from sharpening.rewards.layouts import CHECKPOINT
from sharpening.rewards.preprocessing import Preprocessing
from sharpening.rewards.scorer import ImageScorer
from sharpening.rewards.weights import linear, linear_stack, read_weights, shapes_of, weights_file


class AestheticScorer(ImageScorer):
    """Predicted rating of an image, about 1 (ugly) to 10 (beautiful); prompts are not read.

    The head reads the image's embedding, divided by its length.
    """

    def __init__(
        self, model: str = ARCHITECTURE, checkpoint: str | None = None, device: str = "cpu", batch_size: int = 32
    ) -> None:
        """Load CLIP and head.

        Args:
            model: the CLIP: an open_clip architecture, whose weights are OpenAI's, or a folder or hub id in
                open_clip's layout.
            checkpoint: the head: a file, a folder, `owner/name` or `owner/name:file` of the hub; None: the improved
                predictor's newest one.
            device: torch device.
            batch_size: images of a forward pass; a request is padded to a multiple of it.

        Raises:
            RewardModelError: if CLIP or head cannot be loaded, or do not fit.
            ValueError: if `batch_size` is below 1.
        """  # noqa: DOC502
        from sharpening.rewards.lean_open_clip import open_clip

        place = torch.device(device)
        clip, _ = load_open_clip(model, OPENAI if model in open_clip.list_models() else None, place)
        self._clip = clip.visual
        preprocessing = Preprocessing.of_open_clip(clip.visual.preprocess_cfg)
        with torch.inference_mode():
            width = self._clip(torch.zeros(1, 3, *preprocessing.size, device=place)).shape[1]
        self._head = load_head(checkpoint or HEAD, width).to(place)
        super().__init__(preprocessing, place, batch_size)

    def _features(self, pixels: Tensor) -> Tensor:
        return self._clip(pixels)

    def _encode_prompt(self, prompt: str) -> np.ndarray:
        del prompt
        return np.zeros(0, np.float32)

    def _compare_tensors(self, image: Tensor, text: Tensor) -> Tensor:
        del text
        return self._head(image / image.norm(dim=1, keepdim=True))[:, 0]


def load_head(value: str, width: int) -> nn.Module:
    """Load one of LAION's heads, frozen.

    Args:
        value: file, folder or hub id.
        width: of the CLIP's embeddings.

    Returns:
        The head, on the CPU: `[B, width]` → `[B, 1]`.

    Raises:
        RewardModelError: if it cannot be loaded, or reads embeddings of another width.
    """  # noqa: DOC502
    path = weights_file(value, CHECKPOINT)
    tensors = read_weights(path)
    layout = head_layout(path, shapes_of(tensors), width)
    if layout == LINEAR:
        return linear(tensors)
    return linear_stack(tensors, "layers", nn.ReLU if layout == RELU else None)
