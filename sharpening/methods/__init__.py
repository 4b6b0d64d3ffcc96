"""Fine-tuning methods, each two hooks in one file; registered here. Imports no torch until one is loaded."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sharpening.options import MethodOptions

if TYPE_CHECKING:
    from sharpening.methods.base import Method

METHODS: dict[str, tuple[str, str]] = {
    "rlhf": ("sharpening.methods.rlhf:RLHFSharpening", "sharpening.options.rlhf:SharpeningOptions"),
    "ddpo": ("sharpening.methods.ddpo:DDPO", "sharpening.options.ddpo:DDPOOptions"),
    "d3po": ("sharpening.methods.d3po:D3PO", "sharpening.options.d3po:D3POOptions"),
    "sft": ("sharpening.methods.sft:SFTSharpening", "sharpening.options.sft:SFTOptions"),
    "standard": ("sharpening.methods.standard:StandardFineTuning", "sharpening.options.standard:StandardOptions"),
    "dpo": ("sharpening.methods.dpo:DiffusionDPO", "sharpening.options.dpo:DPOOptions"),
    "rebel": ("sharpening.methods.rebel:Rebel", "sharpening.options.rebel:RebelOptions"),
    "iterpo": ("sharpening.methods.iterpo:IterPO", "sharpening.options.iterpo:IterPOOptions"),
    "guidance_distillation": (
        "sharpening.methods.guidance_distillation:GuidanceDistillation",
        "sharpening.options.guidance_distillation:GuidanceDistillationOptions",
    ),
}
"""Import paths of each method's class and of its options, by the name users give it."""


def options_class(name: str) -> type[MethodOptions]:
    """The class of a method's options; torch is not imported.

    Args:
        name: a name in `METHODS`.

    Returns:
        The dataclass.

    Raises:
        ValueError: if there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'; choose one of {', '.join(METHODS)}")
    return _attribute(METHODS[name][1])


def load_method(name: str, options: MethodOptions | None = None) -> Method:
    """Make a method.

    Args:
        name: a name in `METHODS`.
        options: its options; None means the defaults.

    Returns:
        The method.

    Raises:
        ValueError: if there is no such method.
    """  # noqa: DOC502
    return _attribute(METHODS[name][0])(options or options_class(name)())


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
