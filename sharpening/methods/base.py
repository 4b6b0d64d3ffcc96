"""The two hooks every fine-tuning method is made of, and what travels between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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


@dataclass
class Experience:
    """What learning needs of a rollout; CPU tensors, nothing with a graph.

    P prompts, K timesteps a prompt, G = P·K groups (group g of a fresh experience belongs to prompt g // K), n
    branches, m states. The pair axis is 0 winner, 1 loser.

    Attributes:
        prompts: the P prompts.
        slots: their places within the update.
        update: the update they belong to.
        version: version of the weights that made the rollout (updates applied).
        condition: embeddings, one row a prompt.
        group_prompt: `[G]`, row of a group's prompt.
        x_t: `[G, 2, m, C, H, W]`, selected states.
        timesteps: `[G, m]`.
        mask: `[G, m]`, which states exist (branches are cut off at the clean end).
        target: `[G, 2, m, C, H, W]`, the noise a state is regressed to.
        reference_error: `[G, 2, m]`, the reference's mean squared error per element.
        reward: `[G, 2]`, path rewards of winner and loser, in the reward's unit.
        path_rewards: `[G, n]`, path rewards of all branches.
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
    x_t: Float[Tensor, "group 2 step channel height width"]
    timesteps: Int[Tensor, "group step"]
    mask: Bool[Tensor, "group step"]
    target: Float[Tensor, "group 2 step channel height width"]
    reference_error: Float[Tensor, "group 2 step"]
    reward: Float[Tensor, "group 2"]
    path_rewards: Float[Tensor, "group branch"]
    nfe: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    images_scored: int = 0

    @property
    def groups(self) -> int:
        """Number of groups G."""
        return len(self.x_t)

    def select(self, groups: Sequence[int] | Int[Tensor, " rows"]) -> Experience:
        """Some groups with their prompts. The account (nfe, seconds, dropped, images) stays with the whole.

        Args:
            groups: group numbers; they may repeat.

        Returns:
            An experience of those groups, in that order.
        """
        groups = torch.as_tensor(groups, dtype=torch.long)
        kept, group_prompt = torch.unique(self.group_prompt[groups], return_inverse=True)
        rows: dict[str, Any] = {name: getattr(self, name)[groups] for name in _GROUP_FIELDS}
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

    @staticmethod
    def cat(experiences: Sequence[Experience]) -> Experience:
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
        rows: dict[str, Any] = {name: torch.cat([getattr(e, name) for e in experiences]) for name in _GROUP_FIELDS}
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

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for checks and accounts.

        Returns:
            Name to tensor, the condition's included.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return own | {f"condition.{f.name}": getattr(self.condition, f.name) for f in fields(self.condition)}


_GROUP_FIELDS = ("x_t", "timesteps", "mask", "target", "reference_error", "reward", "path_rewards")


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
    """A fine-tuning method: `collect` runs where images are made, `loss` where gradients are."""

    def collect(
        self, policy: Policy, reference: Policy, score: ScoreFn, prompts: Sequence[str], seeds: Seeds
    ) -> Experience:
        """Sample, branch, score and select, without gradient; a pure function of weights, prompts and seeds."""

    def loss(self, policy: Policy, experience: Experience) -> Loss:
        """Recompute the selected states with gradient and compare them with the reference."""
