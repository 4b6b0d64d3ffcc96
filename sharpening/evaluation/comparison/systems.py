"""The systems of the comparison: their names, titles and kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["base", "fine-tuning", "search"]


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        title: as it is printed.
        kind: the unchanged model, a fine-tuned one, or a search at inference with the unchanged model.
        ours: whether it is a sharpening method.
    """

    title: str
    kind: Kind
    ours: bool = False


BASE, OURS = "base", "rlhf"
SYSTEMS: dict[str, System] = {
    "base": System("base model", "base"),
    "standard": System("standard fine-tuning", "fine-tuning"),
    "dpo": System("Diffusion-DPO", "fine-tuning"),
    "ddpo": System("DDPO", "fine-tuning"),
    "d3po": System("D3PO", "fine-tuning"),
    "iterpo": System("IterPO", "fine-tuning"),
    "rebel": System("REBEL", "fine-tuning"),
    "guidance_distillation": System("guidance distillation", "fine-tuning"),
    "random": System("random search", "search"),
    "zero_order": System("zero-order search", "search"),
    "paths": System("search over paths", "search"),
    "demon": System("Demon", "search"),
    "free2guide": System("Free²Guide", "search"),
    "fk_steering": System("FK steering", "search"),
    "sft": System("SFT sharpening", "fine-tuning", ours=True),
    "rlhf": System("RLHF sharpening", "fine-tuning", ours=True),
    "rlhf_image": System("RLHF, picked by image", "fine-tuning", ours=True),
    "rlhf_guided": System("RLHF sharpening, guided", "fine-tuning", ours=True),
}
"""In the order of the tables' rows."""


def title_of(system: str) -> str:
    """A system's title; a name that is not in `SYSTEMS` (a setting of an ablation) stands for itself."""
    return SYSTEMS[system].title if system in SYSTEMS else system


def names_of(kind: Kind) -> tuple[str, ...]:
    """Names of all systems of a kind, in the order of the tables."""
    return tuple(name for name, system in SYSTEMS.items() if system.kind == kind)
