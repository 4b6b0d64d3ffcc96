"""What the options of training make of a loaded model, in the plain loop and in every process of a job alike."""

from __future__ import annotations

from typing import Any

from sharpening.options import TrainingOptions
from sharpening.policies.base import Policy


def prepare(policy: Policy, options: TrainingOptions, learns: bool) -> None:
    """Put adapters in, compile the denoiser, have it compute activations twice.

    Args:
        policy: a loaded model; changed in place.
        options: say what; a model that has adapters already keeps them.
        learns: whether gradients will be asked for here.

    Raises:
        ValueError: if no layer has the name of a LoRA target, or the denoiser cannot checkpoint its gradients.
    """
    if options.rank and not policy.adapted:
        policy.add_adapter(options.rank, options.lora_alpha, options.lora_target_modules, options.seed)
    if learns and options.gradient_checkpointing:
        denoiser: Any = policy.denoiser
        if not hasattr(denoiser, "enable_gradient_checkpointing"):
            raise ValueError(f"{type(denoiser).__name__} cannot checkpoint gradients; leave gradient_checkpointing out")
        denoiser.enable_gradient_checkpointing()
    if options.torch_compile:
        policy.denoiser.compile()  # in place: names of parameters and who holds the module stay as they are
