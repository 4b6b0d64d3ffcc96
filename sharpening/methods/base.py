"""The two hooks every fine-tuning method is made of, and what travels between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.data.source import Batch
from sharpening.options import MethodOptions
from sharpening.policies.base import Condition, Policy
from sharpening.rewards.base import ScoreFn


@dataclass(frozen=True)
class Seeds:
    """The counters a rollout task's random numbers come from.

    Attributes:
        run_seed: the run's seed.
        update: the update the task belongs to, from 0.
        slots: the place of each of the task's prompts within the update.
    """

    run_seed: int
    update: int
    slots: tuple[int, ...]


@dataclass(kw_only=True)
class Experience:
    """What learning needs of a rollout; CPU tensors, nothing with a graph.

    P prompts, G groups: the unit that a loss is a mean over, and that work is divided by. Each method's experience adds
    the tensors its loss reads, one row a group; they are selected and joined along with these.

    Attributes:
        prompts: the P prompts.
        slots: their places within the update.
        update: the update they belong to.
        version: version of the weights that made the rollout (updates applied).
        condition: embeddings, one row a prompt.
        group_prompt: `[G]`, row of a group's prompt.
        path_rewards: `[G, n]`, rewards that the group was chosen by, in the reward's unit; n = 0 without a reward.
        nfe: denoiser evaluations spent, policy and reference.
        seconds: time spent, by stage.
        dropped: (slot, reason) of each prompt left out because an image of it failed to score.
        images_scored: images sent to the reward.
    """

    prompts: list[str]
    slots: list[int]
    update: int
    version: int
    condition: Condition
    group_prompt: Int[Tensor, " group"]
    path_rewards: Float[Tensor, "group branch"]
    nfe: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    images_scored: int = 0

    @property
    def groups(self) -> int:
        """Number of groups G."""
        return len(self.group_prompt)

    def statistics(self) -> dict[str, Float[Tensor, " group"]]:
        """Numbers of each group that are worth following over a run, beside its rewards."""
        return {}

    def select(self, groups: Sequence[int] | Int[Tensor, " rows"]) -> Self:
        """Some groups with their prompts. The account (nfe, seconds, dropped, images) stays with the whole.

        Args:
            groups: group numbers; they may repeat.

        Returns:
            An experience of those groups, in that order.
        """
        groups = torch.as_tensor(groups, dtype=torch.long)
        kept, group_prompt = torch.unique(self.group_prompt[groups], return_inverse=True)
        rows: dict[str, Any] = {name: value[groups] for name, value in self._rows().items()}
        return replace(
            self,
            prompts=[self.prompts[b] for b in kept.tolist()],
            slots=[self.slots[b] for b in kept.tolist()],
            condition=self.condition.index(kept),
            group_prompt=group_prompt,
            **rows,
            nfe=0,
            seconds={},
            dropped=[],
            images_scored=0,
        )

    @classmethod
    def cat(cls, experiences: Sequence[Self]) -> Self:
        """Several experiences of one update as one; their accounts are added up.

        Args:
            experiences: at least one.

        Returns:
            One experience, rows in the order given.

        Raises:
            ValueError: if they stem from different updates or different versions of the weights.
        """
        if len({(e.update, e.version) for e in experiences}) != 1:
            found = sorted({(e.update, e.version) for e in experiences})
            raise ValueError(f"experiences of one update must share update and version, got (update, version) {found}")
        starts = torch.tensor([0, *(len(e.prompts) for e in experiences)]).cumsum(0).tolist()
        rows: dict[str, Any] = {
            name: torch.cat([getattr(e, name) for e in experiences]) for name in experiences[0]._rows()
        }
        seconds: dict[str, float] = {}
        for experience in experiences:
            for stage, spent in experience.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
        return replace(
            experiences[0],
            prompts=[prompt for e in experiences for prompt in e.prompts],
            slots=[slot for e in experiences for slot in e.slots],
            condition=Condition.cat([e.condition for e in experiences]),
            group_prompt=torch.cat([e.group_prompt + start for e, start in zip(experiences, starts, strict=False)]),
            **rows,
            nfe=sum(e.nfe for e in experiences),
            seconds=seconds,
            dropped=[entry for e in experiences for entry in e.dropped],
            images_scored=sum(e.images_scored for e in experiences),
        )

    def _rows(self) -> dict[str, Tensor]:
        """Tensors with a row a group."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        del own["group_prompt"]
        return own

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for checks and accounts.

        Returns:
            Name to tensor, the condition's included.
        """
        condition = {f"condition.{name}": value for name, value in self.condition.tensors().items()}
        return {"group_prompt": self.group_prompt} | self._rows() | condition


@dataclass
class Loss:
    """A loss with what is worth knowing about it.

    Attributes:
        value: scalar, the mean over the experience's groups: weighted means over micro-batches add up to the whole.
        metrics: plain numbers, each a mean over groups as well.
    """

    value: Float[Tensor, ""]
    metrics: dict[str, float]


class Method(Protocol):
    """A fine-tuning method: `collect` runs where images are made, `loss` where gradients are.

    Attributes:
        options: the method's options.
    """

    @property
    def options(self) -> MethodOptions:
        """The method's options."""

    def collect(self, policy: Policy, reference: Policy, score: ScoreFn, batch: Batch, seeds: Seeds) -> Experience:
        """Sample, branch, score and select, without gradient; a pure function of weights, examples and seeds."""

    def loss(self, policy: Policy, experience: Any) -> Loss:
        """Recompute the selected states with gradient and compare them with the reference."""


def check_batch(batch: Batch, seeds: Seeds) -> None:
    """Refuse examples that do not match their slots.

    Args:
        batch: the task's examples.
        seeds: one slot an example.

    Raises:
        ValueError: if they differ in number.
    """
    if len(batch.prompts) != len(seeds.slots):
        raise ValueError(f"{len(batch.prompts)} prompts came with {len(seeds.slots)} slots")
