"""Options of what is drawn and judged beside the training: held-out prompts and the user's own."""

import math
from typing import Any

from pydantic import field_validator

from rayjobs.options.declaring import Options, option

OWN_IMAGES = 4
"""Images of each of the user's own prompts, as in diffusers' scripts."""


class EvaluationOptions(Options):
    """Which prompts are looked at before, in and after training."""

    eval_prompts: int = option(
        600, "evaluation", "prompts", "benchmark prompts, spread over the categories", resume=False, ge=2
    )
    eval_other_prompts: int = option(
        150, "evaluation", "prompts", "how many of them at the other guidance scales", resume=False, ge=2
    )
    eval_steps: int | None = option(
        None, "evaluation", "denoising steps", "sampler steps of evaluation images", "T", "rollout_steps",
        resume=False, ge=1,
    )  # fmt: skip
    eval_guidance_scales: tuple[float, ...] = option(
        (1.0, 3.0), "evaluation", "-", "guidance scales to evaluate at; the rollouts' own is always among them", "w",
        resume=False,
    )  # fmt: skip
    validation_steps: int = option(
        6, "evaluation", "updates", "updates between looks at other held-out prompts; 0 for none", resume=False, ge=0
    )
    validation_prompts: int = option(48, "evaluation", "prompts", "how many of those", resume=False, ge=2)
    validation_prompt: tuple[str, ...] = option(
        (), "evaluation", "texts", "your own prompts, drawn before training, at every look and after it, each with its "
        "reward; --validation_prompts with texts is the same", shown="none", resume=False,
    )  # fmt: skip
    num_validation_images: int | None = option(
        None, "evaluation", "images a prompt", "images of each of your own prompts, each from noise of its own",
        shown=f"{OWN_IMAGES} with --validation_prompt", resume=False, ge=1,
    )  # fmt: skip
    skip_evaluation: bool = option(False, "evaluation", "switch", "train only", resume=False)

    @field_validator("validation_prompt", mode="before")
    @classmethod
    def _check_own_prompts(cls, value: Any) -> Any:
        """Accept one text or several, as diffusers' scripts do; a comma is part of a prompt."""
        texts = value if isinstance(value, (list, tuple)) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a prompt is a text, and {text} is none; put it in quotes")
            if not text.strip():
                raise ValueError("a prompt without any text; write one, or leave the option out")
        return tuple(text.strip() for text in texts)

    @field_validator("eval_guidance_scales", mode="before")
    @classmethod
    def _split_scales(cls, value: Any) -> Any:
        """Accept `1 2 3` and `1,2,3`."""
        if isinstance(value, (list, tuple)):
            value = ",".join(str(item) for item in value)
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("eval_guidance_scales")
    @classmethod
    def _check_scales(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not math.isfinite(scale) or scale < 0 for scale in value):
            raise ValueError("every guidance scale must be a finite number of at least 0")
        return value
