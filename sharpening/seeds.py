"""Counter-based random numbers: every draw depends on (run seed, update, slot, purpose, ...) and on nothing else.

No generator is carried along, so the numbers are the same however the work is split over processes, and after a resume.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def generator(run_seed: int, *counters: int | str) -> np.random.Generator:
    """The generator that belongs to one place in a run.

    Args:
        run_seed: the run's seed.
        *counters: what the numbers are for: a purpose such as "latent", then update, slot, branch, ...

    Returns:
        A fresh Philox generator; equal arguments give equal streams, different ones independent streams.
    """
    place = "/".join(f"{type(part).__name__}:{part}" for part in (int(run_seed), *counters))
    key = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def noise(shape: tuple[int, ...], run_seed: int, *counters: int | str) -> Tensor:
    """Standard normal noise that belongs to one place in a run.

    Args:
        shape: shape of the noise, for example `(C, H, W)`.
        run_seed: the run's seed.
        *counters: as in `generator`.

    Returns:
        float32 CPU tensor of that shape.
    """
    import torch

    return torch.from_numpy(generator(run_seed, *counters).standard_normal(shape, dtype=np.float32))
