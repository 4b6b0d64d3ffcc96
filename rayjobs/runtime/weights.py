"""Weights on their way from the learner to the rollout actors.

One version is one flat uint8 array in the safetensors layout: it lies in the object store once per node, every actor
maps it without a copy, and the same bytes are a `.safetensors` file. Nothing else knows how weights travel.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_LENGTH_BYTES = 8  # safetensors: little-endian length of the JSON header, the header, then the tensors' bytes


def pack(state: Mapping[str, "torch.Tensor"]) -> np.ndarray:
    """Lay tensors out as one safetensors buffer.

    Args:
        state: Tensors by name, on any device.

    Returns:
        uint8 array [bytes] that `unpack` reads and that, written to a file, safetensors loads.
    """
    from safetensors.torch import save

    return np.frombuffer(save({name: value.detach().cpu().contiguous() for name, value in state.items()}), np.uint8)


def unpack(buffer: np.ndarray) -> dict[str, "torch.Tensor"]:
    """Read tensors out of a safetensors buffer, as views: copy them before writing to them.

    Args:
        buffer: uint8 array [bytes] from `pack`.

    Returns:
        CPU tensors by name, which share the buffer's memory.
    """
    import torch
    from safetensors.torch import _TYPES as DTYPES

    length = int.from_bytes(buffer[:_LENGTH_BYTES].tobytes(), "little")
    header: dict[str, Any] = json.loads(buffer[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes())
    header.pop("__metadata__", None)
    body = buffer[_LENGTH_BYTES + length :]
    state = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # they are views of shared memory
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            dtype = DTYPES[entry["dtype"]]
            flat = torch.empty(0, dtype=dtype)
            if last > first:
                flat = torch.frombuffer(body[first:last], dtype=dtype)  # type: ignore[arg-type, unused-ignore]
            state[name] = flat.reshape(entry["shape"])
    return state


def write(buffer: np.ndarray, path: Path) -> None:
    """Write a version as a `.safetensors` file.

    Args:
        buffer: uint8 array [bytes] from `pack`.
        path: The file.
    """
    buffer.tofile(path)


def read(path: Path) -> np.ndarray:
    """Read a version back.

    Args:
        path: A file that `write` wrote.

    Returns:
        uint8 array [bytes] for `unpack`.
    """
    return np.fromfile(path, np.uint8)


class Versions:
    """The newest weights, by version; a version is the number of updates applied.

    It keeps what rollouts of bounded staleness can still ask for: the newest `staleness + 1` versions. Version 0 of
    a run that starts afresh is the pretrained model itself, which every actor has loaded: it needs no weights.
    """

    def __init__(self, staleness: int) -> None:
        self._keep = staleness + 1
        self._held: dict[int, Any] = {}
        self.newest = -1

    def publish(self, version: int, weights: Any) -> None:
        """Take a version in and let go of those that nobody can ask for any more.

        Args:
            version: Updates applied.
            weights: What actors are to be given, such as an object reference; `None` for the pretrained model.
        """
        self.newest = version
        self._held[version] = weights
        for old in [held for held in self._held if held > version or held <= version - self._keep]:
            del self._held[old]

    def __contains__(self, version: int) -> bool:
        return version in self._held

    def __getitem__(self, version: int) -> Any:
        return self._held[version]
