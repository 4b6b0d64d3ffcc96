"""What every `collect` needs: scores by prompt, stratified timesteps, time by stage, the rollouts' precision."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.methods.base import Seeds
from sharpening.options import MethodOptions
from sharpening.rewards.base import ScoreFn
from sharpening.seeds import generator


def precision(options: MethodOptions, device: torch.device) -> AbstractContextManager[object]:
    """The arithmetic of rollouts.

    Args:
        options: say which.
        device: where they are made.

    Returns:
        A context, autocasting or not.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=options.rollout_precision == "bf16")


def stratified_places(seeds: Seeds, total: int, strata: int) -> Int[Tensor, "prompt time"]:
    """Places in a sampler's grid for each prompt, one uniform draw in each of K equal strata.

    Args:
        seeds: counters of the draws; one slot a prompt.
        total: places in the grid.
        strata: K.

    Returns:
        Places, rising, 0 being the noisiest.
    """
    edges = [total * k // strata for k in range(strata + 1)]
    draws = [
        [
            int(generator(seeds.run_seed, "timestep", seeds.update, slot, k).integers(edges[k], edges[k + 1]))
            for k in range(strata)
        ]
        for slot in seeds.slots
    ]
    return torch.tensor(draws)


def score_images(
    score: ScoreFn, images: np.ndarray, prompts: Sequence[str], owner: Int[Tensor, " image"]
) -> tuple[Float[Tensor, " image"], dict[int, str]]:
    """Score images that belong to prompts.

    Args:
        score: the reward; called once.
        images: uint8 `[N, H, W, 3]`.
        prompts: the task's prompts.
        owner: which of them each image belongs to.

    Returns:
        Scores (what stands at a failed image means nothing), and the first failure's reason for each prompt that has
        one.

    Raises:
        ValueError: if the reward answers for another number of images.
    """
    scores = score(images, [prompts[b] for b in owner.tolist()])
    values = np.asarray(scores.values, dtype=np.float32)
    if values.shape != (len(images),):
        raise ValueError(f"the reward answered with shape {values.shape} for {len(images)} images")
    failures = {int(i): "not finite" for i in np.flatnonzero(~np.isfinite(values))} | scores.failures
    failed: dict[int, str] = {}
    for image, reason in sorted(failures.items()):
        failed.setdefault(int(owner[image]), reason)
    return torch.from_numpy(values), failed


class Stopwatch:
    """Seconds by stage; waits for the accelerator at each stage's end, so that work is booked where it was caused."""

    def __init__(self, device: torch.device) -> None:
        """Start without any time spent.

        Args:
            device: where the work is done.
        """
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Book the time that a block takes.

        Args:
            stage: what it is spent on.

        Yields:
            Nothing.
        """
        begin = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
