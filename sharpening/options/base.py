"""What all methods' options share: how one is declared, checked and refused. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from sharpening.data.source import Kind
from sharpening.options.training import OptionError, TrainingOptions, require

__all__ = ["Kind", "MethodOptions", "OptionError", "described", "require"]

_HOLDS = {
    "ge": (lambda value, limit: value >= limit, "at least"),
    "gt": (lambda value, limit: value > limit, "greater than"),
    "le": (lambda value, limit: value <= limit, "at most"),
    "lt": (lambda value, limit: value < limit, "less than"),
}


def described(
    default: Any, about: str, unit: str = "-", symbol: str = "-", fix: str = "", resume: bool = True, **bounds: float
) -> Any:
    """Declare an option of a method; command lines make their help and their checks of it.

    Args:
        default: the vetted setting.
        about: one sentence for the help.
        unit: the value's unit.
        symbol: the paper's symbol, `-` when it has none.
        fix: what to do about a wrong value, when the bounds alone would not say it.
        resume: whether a resumed run must keep the value (it changes the arithmetic).
        **bounds: `ge`, `gt`, `le`, `lt`.

    Returns:
        The dataclass field.
    """
    about_it = {"about": about, "unit": unit, "symbol": symbol, "fix": fix, "resume": resume, "bounds": bounds}
    return field(default=default, metadata=about_it)


@dataclass(frozen=True)
class MethodOptions:
    """What every fine-tuning method can be told; each adds its own.

    Attributes:
        rollout_steps: sampler steps of a generated image.
        guidance_scale: classifier-free guidance of generated images (1: none).
        rollout_precision: arithmetic of rollouts; "bf16" autocasts sampling. Errors that a loss compares are always
            in the weights' own precision.
        about: one sentence on the method, with its source.
        training: the training options it was tuned with.
        data: the kind of training example it learns from.
        rewarded: whether it learns from a reward.
        bf16: whether its loss stands weights in bfloat16.
    """

    rollout_steps: int = described(12, "sampler steps of a rollout", "denoising steps", "T", ge=1)
    guidance_scale: float = described(
        1.0, "classifier-free guidance of rollouts; 1 is unguided and costs half", symbol="w", ge=0
    )
    rollout_precision: Literal["fp32", "bf16"] = described(
        "fp32", "arithmetic of sampling and branching, never that of the errors compared"
    )

    about: ClassVar[str] = ""
    training: ClassVar[TrainingOptions] = TrainingOptions()
    data: ClassVar[Kind] = "prompts"
    rewarded: ClassVar[bool] = True
    bf16: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check each option alone.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        hints = get_type_hints(type(self))
        for option in fields(self):
            value, kind = getattr(self, option.name), hints[option.name]
            if get_origin(kind) is Literal:
                choices = get_args(kind)
                require(value in choices, option.name, f"must be one of {', '.join(map(str, choices))}")
                continue
            if isinstance(value, float):
                require(math.isfinite(value), option.name, "must be a finite number; pass an ordinary one")
            for bound, limit in option.metadata.get("bounds", {}).items():
                holds, words = _HOLDS[bound]
                remedy = option.metadata["fix"] or f"pass a value {'of ' if 'at' in words else ''}{words} {limit:g}"
                require(holds(value, limit), option.name, f"must be {words} {limit:g}, is {value}; {remedy}")

    @property
    def groups_per_prompt(self) -> int:
        """How many groups, the unit a loss is a mean over, one training example gives."""
        return 1
