"""LAION's aesthetic heads, told apart by their tensors; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpening.rewards.clip_files import check_model
from sharpening.rewards.layouts import CHECKPOINT, Shapes, check_layout, file_shapes, local_weights

ARCHITECTURE, OPENAI = "ViT-L-14", "openai"
HEAD = "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth"
"""`sac+logos+ava1-l14-linearMSE.pth` of the improved aesthetic predictor, as the hub has it."""

WIDTHS = (1024, 128, 64, 16, 1)
"""Outputs of the five linear layers of the improved predictor, and of ImageReward's MLP, which was taken from it."""
LINEAR, MLP, RELU = "linear", "mlp", "relu"
NUMBERS = {MLP: (0, 2, 4, 6, 7), RELU: (0, 3, 6, 9, 11)}
"""Numbers of those layers in their `nn.Sequential`, between which dropout, or ReLU and dropout, stand."""


def check(model: str | None, checkpoint: str | None) -> None:
    """Refuse a CLIP or a head that is not there.

    Args:
        model: the CLIP; None: OpenAI's ViT-L/14.
        checkpoint: the head; None: the hub's.

    Raises:
        RewardModelError: if a file is absent, truncated, or no head for this CLIP.
    """  # noqa: DOC502
    config = check_model(model or ARCHITECTURE)
    path = local_weights(checkpoint or HEAD, CHECKPOINT)
    found = file_shapes(path, CHECKPOINT) if path is not None else None
    if path is not None and found is not None:
        head_layout(path, found, None if config is None else config["embed_dim"])


def head_layout(path: Path, found: Shapes, width: int | None) -> str:
    """Which of the public heads a file holds.

    Args:
        path: the file, for the message.
        found: shapes of its tensors.
        width: of the CLIP's embeddings; None: whatever the head reads.

    Returns:
        `LINEAR`, `MLP` or `RELU`.

    Raises:
        RewardModelError: if it holds none of them, or one for embeddings of another width.
    """  # noqa: DOC502
    layout = LINEAR if "weight" in found else RELU if "layers.11.weight" in found else MLP
    first = "weight" if layout == LINEAR else "layers.0.weight"
    if width is None:
        width = found[first][-1] if found.get(first) else 0
    expected = {"weight": (1, width), "bias": (1,)} if layout == LINEAR else stack_shapes(width, NUMBERS[layout])
    remedy = f"pass one of LAION's heads for {width}-d CLIP embeddings as --{CHECKPOINT}"
    check_layout(path, found, expected, remedy, CHECKPOINT)
    return layout


def stack_shapes(width: int, numbers: Sequence[int], prefix: str = "layers") -> Shapes:
    """Shapes of the improved predictor's linear layers.

    Args:
        width: of what the first one reads.
        numbers: of the layers.
        prefix: of their names.

    Returns:
        Shapes by name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for number, inputs, outputs in zip(numbers, (width, *WIDTHS), WIDTHS, strict=False):
        shapes |= {f"{prefix}.{number}.weight": (outputs, inputs), f"{prefix}.{number}.bias": (outputs,)}
    return shapes
