"""Weights files as tensors: safetensors, or what `torch.save` wrote, of which nothing but tensors is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharpening.rewards.base import RewardModelError
from sharpening.rewards.layouts import CHECKPOINT, Shapes, bare, choose_weights, file_shapes, hub_parts, local_weights

_WRAPPERS = ("state_dict", "model")  # under which training scripts save a model beside other things


def weights_file(value: str, option: str, wanted: str = "", called: str = "") -> Path:
    """The weights file that a value names, fetched from the hub if it does not lie here.

    Args:
        value: a file, a folder that holds one weights file, or a hub id (`owner/name`, `owner/name:path`, where the
            path is a file or a folder of the repository).
        option: the option that says so, for the message.
        wanted: regular expression that the file's name must match.
        called: the same in words, for the message.

    Returns:
        The file.

    Raises:
        RewardModelError: if there is no such file, or several, or the hub does not give it.
    """
    local = local_weights(value, option, wanted, called)
    parts = hub_parts(value)
    if local is not None or parts is None:
        return local or Path(value)
    from huggingface_hub import HfApi, hf_hub_download

    repository, inside = parts
    try:
        if not Path(inside).suffix:
            names = [name for name in HfApi().list_repo_files(repository) if name.startswith(inside)]
            inside = choose_weights(names, value, option, wanted, called)
        return Path(hf_hub_download(repository, inside))
    except RewardModelError:
        raise
    except Exception as error:  # the hub's client raises its own errors, httpx's and the system's
        raise RewardModelError(
            f"{value} cannot be fetched from the hub ({one_line(error)}); pass a file or folder as --{option}", option
        ) from error


def read_weights(path: Path, option: str = CHECKPOINT) -> dict[str, Tensor]:
    """Read a weights file.

    Args:
        path: safetensors, or a torch file with tensors by name, perhaps under `state_dict` or `model`.
        option: the option that names the file.

    Returns:
        Tensors on the CPU by name, floats as float32, without the prefix `module.` of distributed training.

    Raises:
        RewardModelError: if the file is damaged, holds other things than tensors, or would have to be unpickled.
    """
    file_shapes(path, option)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RewardModelError(pickled(path), option) from error
    except Exception as error:  # torch raises whatever it meets
        raise RewardModelError(f"{path} does not load ({one_line(error)}); download it again", option) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise RewardModelError(f"{path} holds no tensors by name; pass a model's state_dict as --{option}", option)
    return {bare(name): value.float() if value.is_floating_point() else value for name, value in content.items()}


def pickled(path: Path) -> str:
    """What is wrong with a torch file that holds more than tensors, and what to do."""
    return (
        f"{path} holds pickled Python objects besides tensors, which are never loaded; where you trust the file, load "
        "it once yourself, write its state_dict with safetensors.torch.save_file, and pass the new file"
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def linear_stack(tensors: Mapping[str, Tensor], prefix: str, between: type[nn.Module] | None = None) -> nn.Sequential:
    """The linear layers of a stack, one after the other; dropout between them does nothing at evaluation.

    Args:
        tensors: by name, among them `PREFIX.NUMBER.weight` and `PREFIX.NUMBER.bias`.
        prefix: of the names.
        between: activation between the layers; None: there is none.

    Returns:
        The stack, frozen.
    """
    start = f"{prefix}."
    numbers = sorted({int(name.removeprefix(start).split(".")[0]) for name in tensors if name.startswith(start)})
    stack: list[nn.Module] = []
    for number in numbers:
        if between is not None and stack:
            stack.append(between())
        stack.append(linear(tensors, f"{prefix}.{number}."))
    return nn.Sequential(*stack)


def linear(tensors: Mapping[str, Tensor], prefix: str = "") -> nn.Linear:
    """A frozen linear layer of the tensors `PREFIXweight` and `PREFIXbias`."""
    weight, bias = tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(False)


def one_line(error: Exception) -> str:
    """An error's message on one line, cut to what can be read."""
    return " ".join(str(error).split())[:300] or type(error).__name__
