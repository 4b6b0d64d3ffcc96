"""Methods that stop between updates to make new data and judge by new models: what they hand to the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from sharpening.data.source import Batch
from sharpening.methods.base import Seeds
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn


@dataclass(frozen=True)
class Round:
    """What a new round starts with, and what it cost to make.

    Attributes:
        state: what the method's `loss` needs from now on; safetensors. A checkpoint holds the newest.
        nfe: denoiser evaluations spent.
        seconds: time spent, by stage.
        dropped: (slot, reason) of each prompt left out because an image of it failed to score.
        images_scored: images sent to the reward.
        metrics: plain numbers worth following.
    """

    state: bytes
    nfe: int
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    images_scored: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class InRounds(Protocol):
    """A method whose training falls into rounds: the runtime asks before each update whether one begins.

    Where `round_examples` answers a number above 0, one actor with the newest weights calls `begin_round` with that
    many examples (slots 0, 1, ... of the update) and the newest state (b"" before the first); every process that
    computes `loss` then calls `take` with the new state, and a resumed one with its checkpoint's.
    """

    def round_examples(self, update: int, updates: int) -> int:
        """Training examples needed by the round that begins with an update of so many; 0 where none begins."""

    def begin_round(
        self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds, state: bytes
    ) -> Round:
        """Make a round's state; a pure function of weights, examples, seeds and the state before."""

    def take(self, state: bytes) -> None:
        """Compute `loss` with a state from now on."""


def round_slots(method: Any, update: int, updates: int) -> tuple[int, ...]:
    """Slots of the examples that a round beginning with an update needs, drawn as the update's own are.

    Args:
        method: any method.
        update: the update, from 0.
        updates: updates of the run.

    Returns:
        0, 1, ...; none where no round begins, or the method has none.
    """
    return tuple(range(method.round_examples(update, updates))) if isinstance(method, InRounds) else ()
