"""What is passed between coordinator, rollout actors and learner ranks: tasks, what they tell of themselves, shares.

No Ray and no torch here.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sharpening.data.reading import data_columns
from sharpening.evaluation.statistics import reward_statistics
from sharpening.rewards.statistics import Statistics, columns, merge
from sharpening.slots import dropped_columns


@dataclass(frozen=True)
class RolloutTask:
    """A fixed micro-batch of prompts to roll out.

    Attributes:
        update: 0-based update whose experience this is.
        index: Position among the update's tasks.
        version: Weights to roll out with.
        slots: Counters of the prompts within the update; they seed all noise.
        items: Places of the training examples in their source, one a slot.
        attempt: Which start of the learner group asked; results of a superseded one are not taken.
    """

    update: int
    index: int
    version: int
    slots: tuple[int, ...]
    items: tuple[int, ...]
    attempt: int = 0


@dataclass(frozen=True)
class RoundTask:
    """The examples of a round that begins with an update (`sharpening.methods.rounds`).

    Attributes:
        update: 0-based update.
        slots: Counters of the examples; they seed all noise.
        items: Places of the examples in their source, one a slot.
        source: The training examples, one reference.
        state: The method's state before.
        statistics: What several rewards are standardised by.
    """

    update: int
    slots: tuple[int, ...]
    items: tuple[int, ...]
    source: list[Any]
    state: bytes
    statistics: Statistics = field(default_factory=dict)


@dataclass
class Summary:
    """What a rollout task tells about itself beside its experience; small and free of torch.

    Attributes:
        kept: Examples in the experience.
        groups: Groups in the experience.
        dropped: (slot, reason) of prompts with an image that could not be scored.
        path_rewards: float [groups, n] rewards that each group was chosen by; n = 0 without a reward.
        statistics: float [groups] each, further numbers of the method by name.
        seconds: Seconds by stage.
        nfe: Network evaluations (calls times images) by stage.
        images_scored: Images sent to the reward.
        peak_memory: Bytes, the actor's peak so far.
        peak_gpu_memory: Bytes on its GPU, 0 without.
        notes: What its reward had to say meanwhile, for the run's log.
        scored: Statistics of the scores by each of several rewards, in its own unit.
        skipped: (slot, reason) of examples that could not be used; others took their places.
        truncated: Prompts that are longer than the model reads.
    """

    kept: int
    groups: int
    dropped: list[tuple[int, str]]
    path_rewards: np.ndarray
    statistics: dict[str, np.ndarray]
    seconds: dict[str, float]
    nfe: dict[str, int]
    images_scored: int
    peak_memory: int = 0
    peak_gpu_memory: int = 0
    notes: list[str] = field(default_factory=list)
    scored: Statistics = field(default_factory=dict)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0


@dataclass(frozen=True)
class Share:
    """Groups `[first, last)` of one task's experience.

    Attributes:
        experience: Reference to the experience.
        first: First group.
        last: One past the last group.
    """

    experience: Any
    first: int
    last: int


def rollout_row(summaries: list[Summary], actors: int) -> dict[str, float]:
    """An update's rollout metrics.

    Args:
        summaries: Of the update's tasks, in order.
        actors: Rollout actors; stage seconds are divided by it, so that they add up to the time that passed.

    Returns:
        Reward statistics (Figure 6: mean, and spread over the branches of a prompt and timestep), stage seconds,
        network evaluations, images scored, prompts dropped and examples skipped by reason, and statistics of each of
        several rewards.
    """
    row: dict[str, float] = {}
    rewards = np.concatenate([summary.path_rewards for summary in summaries if summary.kept])
    if rewards.shape[1]:
        found = reward_statistics(rewards)
        row |= {
            "reward": found["reward_mean"], "reward_spread": found["reward_std"],
            "reward_best": found["reward_best"], "reward_worst": found["reward_worst"],
        }  # fmt: skip
    for name in summaries[0].statistics:
        values = np.concatenate([summary.statistics[name] for summary in summaries])
        row[name] = float(values.mean(dtype=np.float64))
    row["nfe"] = sum(sum(summary.nfe.values()) for summary in summaries)
    row["images_scored"] = sum(summary.images_scored for summary in summaries)
    row |= dropped_columns([entry for summary in summaries for entry in summary.dropped])
    row |= data_columns(
        [entry for summary in summaries for entry in summary.skipped], sum(summary.truncated for summary in summaries)
    )
    row |= columns(merge(summary.scored for summary in summaries))
    for stage in dict.fromkeys(stage for summary in summaries for stage in summary.seconds):
        row[f"seconds_{stage}"] = sum(summary.seconds.get(stage, 0.0) for summary in summaries) / actors
    return row
