"""What is measured side by side: our update, the yardstick's, and the turns that both take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from rayjobs.benchmark.yardstick import Yardstick, YardstickOptions
from sharpening.data.prompts import PromptStream
from sharpening.data.source import Batch
from sharpening.loop import learn
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import SharpeningOptions, TrainingOptions
from sharpening.rewards.base import ScoreFn
from sharpening.updates import collect_update


class Contender(Protocol):
    """Something that makes updates, to be measured beside others.

    Attributes:
        prompts: prompts an update learns from.
        pairs: pairs (winner and loser) an update learns from.
    """

    prompts: int
    pairs: int

    def update(self, number: int) -> None:
        """Make one update."""


class Sharpening:
    """Our update: the pieces of the in-process loop, one update at a time.

    Attributes:
        policy: the model in training.
        prompts: prompts an update learns from.
        pairs: pairs an update learns from.
    """

    def __init__(
        self, policy: Any, score: ScoreFn, stream: PromptStream, method: SharpeningOptions, training: TrainingOptions
    ) -> None:
        """Take a model.

        Args:
            policy: the model; its denoiser is changed in place.
            score: the reward.
            stream: the prompts.
            method: options of the method.
            training: options of training.
        """
        self.policy, self._reference = policy, policy.frozen_copy()
        self._score, self._stream, self._training = score, stream, training
        self._method = RLHFSharpening(method)
        self._optimizer = optimizer(policy, training)
        self.prompts = training.prompts_per_update
        self.pairs = training.prompts_per_update * method.timesteps_per_rollout

    def update(self, number: int) -> None:
        """Roll out and learn.

        Args:
            number: the update's number.
        """
        training = self._training
        experience = collect_update(
            lambda tasks: [self.collect(number, slots) for slots in tasks],
            training.prompts_per_update, training.rollout_batch_size, training.max_failed_share,
        )  # fmt: skip
        learn(self.policy, self._method, experience, self._optimizer, training)
        synchronize(self.policy.device)

    def collect(self, update: int, slots: Sequence[int]) -> Experience:
        """Roll out one task.

        Args:
            update: the update's number.
            slots: places of the prompts in the update.

        Returns:
            The experience.
        """
        batch = Batch.of_prompts([self._stream.prompt(update, slot) for slot in slots])
        seeds = Seeds(self._training.seed, update, tuple(slots))
        return self._method.collect(self.policy, self._reference, self._score, batch, seeds)


class PublicOrder:
    """The yardstick's update.

    Attributes:
        prompts: one.
        pairs: one.
    """

    prompts = pairs = 1

    def __init__(self, yardstick: Yardstick, stream: PromptStream, run_seed: int) -> None:
        """Take a yardstick.

        Args:
            yardstick: what makes the updates.
            stream: the prompts.
            run_seed: the run's seed.
        """
        self._yardstick, self._stream, self._run_seed = yardstick, stream, run_seed

    def update(self, number: int) -> None:
        """Make one update, on one prompt.

        Args:
            number: the update's number.
        """
        self._yardstick.update(self._stream.prompt(number, 0), self._run_seed, number)
        synchronize(self._yardstick.policy.device)


def least_time_first(
    contenders: Mapping[str, Contender], seconds: float, say: Callable[[str], None] = lambda text: None
) -> dict[str, list[float]]:
    """Give contenders equal time, update by update: whoever had least goes next, so all see the same disturbances.

    Args:
        contenders: who takes part; each makes one update that does not count before.
        seconds: time that each gets at least; a started update is finished.
        say: told what goes on.

    Returns:
        Seconds of each counted update, by contender.
    """
    for name, contender in contenders.items():
        say(f"first update (not counted): {name}")
        contender.update(0)
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    told = time.perf_counter()
    while True:
        name = min(spent, key=lambda name: sum(spent[name]))
        if spent[name] and sum(spent[name]) >= seconds:
            return spent
        begin = time.perf_counter()
        contenders[name].update(1 + len(spent[name]))
        end = time.perf_counter()
        spent[name].append(end - begin)
        if end - told >= 10:
            told = end
            say(f"{sum(map(sum, spent.values())):.0f} of {seconds * len(contenders):.0f} s")


def our_contenders(yardstick: YardstickOptions) -> dict[str, dict[str, Any]]:
    """Ours beside the yardstick: with its n, and with its n, m and sampler steps; each at K = 1 and K = 4.

    Args:
        yardstick: what the yardstick runs with.

    Returns:
        Changes to the job's options, by name.
    """
    same = {"branch_steps": yardstick.branch_steps, "rollout_steps": yardstick.rollout_steps}
    n = {"branches": yardstick.branches, "latents_per_prompt": 0}
    found: dict[str, dict[str, Any]] = {f"K={k}": n | {"timesteps_per_rollout": k} for k in (1, 4)}
    return found | {f"K={k}, same m and steps": n | same | {"timesteps_per_rollout": k} for k in (1, 4)}


def optimizer(policy: Any, training: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW over a policy's denoiser.

    Args:
        policy: the policy.
        training: options of training.

    Returns:
        The optimiser.
    """
    return torch.optim.AdamW(
        policy.denoiser.parameters(), lr=training.learning_rate, betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon, weight_decay=training.adam_weight_decay,
    )  # fmt: skip


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
