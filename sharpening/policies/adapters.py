"""LoRA adapters inside a denoiser (arXiv 2106.09685, library peft): put in, switched off, read out, merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import Conv2d, Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

NAME = "default"
"""What peft calls the one adapter."""


def add(denoiser: nn.Module, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Put an adapter beside every target layer: `W x + (α / r) B A x`, with A random and B zero: nothing changes yet.

    Args:
        denoiser: the model; changed in place.
        rank: r.
        alpha: α.
        targets: ends of the layers' names, such as `to_q`.
        seed: of A; the same in every process, whatever random numbers were drawn before.

    Raises:
        ValueError: if no layer has one of the names.
    """
    names = [name for name, _ in denoiser.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"{type(denoiser).__name__} has no layer whose name ends in '{target}'; pass names that it has, or "
                "leave --lora_target_modules out"
            )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, denoiser, NAME)


def parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters.

    Args:
        denoiser: the model.

    Returns:
        Name to parameter; empty where there is no adapter.
    """
    return {name: value for name, value in denoiser.named_parameters() if ".lora_" in name}


@contextmanager
def switched_off(denoiser: nn.Module) -> Iterator[None]:
    """Be the model that the adapters were put into, while a block runs.

    Args:
        denoiser: the model.

    Yields:
        Nothing.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    asked = [(value, value.requires_grad) for value in parameters(denoiser).values()]  # peft's switch turns it as well
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for value, requires_grad in asked:
            value.requires_grad_(requires_grad)


@torch.no_grad()
def merged(denoiser: Any) -> nn.Module:
    """The model with its adapters added into its weights.

    Args:
        denoiser: a diffusers model with adapters; not changed.

    Returns:
        A model of the same class, to be saved: layers without an adapter share their weights with the other one.
    """
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in denoiser.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in denoiser.named_modules():
        if isinstance(layer, (Linear, Conv2d)):
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = (weight.float() + layer.get_delta_weight(NAME).float()).to(weight.dtype)
    with init_empty_weights():
        plain: nn.Module = type(denoiser).from_config(denoiser.config)
    plain.load_state_dict(state, assign=True)
    return plain.eval()


def saved_form(denoiser: Any) -> tuple[dict[str, Tensor], LoraConfig]:
    """What a file of adapters holds.

    Args:
        denoiser: a model with adapters.

    Returns:
        Tensors by peft's names, and their configuration.
    """
    return get_peft_model_state_dict(denoiser, adapter_name=NAME), denoiser.peft_config[NAME]


def save_for_peft(denoiser: nn.Module, folder: str | Path) -> None:
    """Write the adapters as `peft.PeftModel.from_pretrained(denoiser, folder)` reads them.

    Args:
        denoiser: a model with adapters.
        folder: where to; made if it is not there.
    """
    state, config = saved_form(denoiser)
    config.save_pretrained(str(folder))
    named = {f"base_model.model.{name}": value.contiguous().cpu() for name, value in state.items()}
    save_file(named, Path(folder) / "adapter_model.safetensors")
