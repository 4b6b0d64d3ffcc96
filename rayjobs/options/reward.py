"""Options that say who judges images, the same for every job that asks rewards. Nothing heavy is imported."""

from typing import Any, Literal

from pydantic import field_validator

from rayjobs.options.declaring import EMBEDDED, Options, option
from sharpening.rewards.mix import Mix
from sharpening.rewards.terms import Term, parse_terms


class RewardOptions(Options):
    """Which rewards there are, with which models, and how they are served."""

    reward: str = option(
        "clip", "reward", "name:weight, …",
        "who judges, such as clip:1.0,embedded-aesthetic:0.2 or package.module:Class; several are standardised and "
        "combined", "R",
    )  # fmt: skip
    reward_combine: Literal["sum", "ranks"] = option(
        "sum",
        "reward",
        "-",
        "several rewards become one as a weighted sum of standard scores or a weighted mean of ranks",
    )
    reward_model: str = option(
        EMBEDDED, "reward", "folder, hub id, architecture",
        "the first reward's model, or NAME=MODEL,NAME=MODEL",
    )  # fmt: skip
    reward_checkpoint: str | None = option(
        None, "reward", "file or pretrained tag",
        "the first reward's weights for an architecture name, or NAME=FILE,NAME=FILE", shown="the model's own",
    )  # fmt: skip
    reward_config: str | dict[str, Any] | None = option(
        None, "reward", "YAML or JSON file",
        "by the reward's name: model, checkpoint, replicas, num_gpus, num_threads, options (the scorer's own)",
        resume=False,
    )  # fmt: skip
    reward_replicas: int = option(1, "reward", "processes", "Ray Serve replicas of each reward", resume=False, ge=1)
    reward_threads: int = option(1, "reward", "CPU threads", "threads of a reward replica", ge=1)
    reward_timeout: float = option(
        120.0, "reward", "seconds", "how long a reward may stay down before the run stops", resume=False, gt=0
    )

    @field_validator("reward")
    @classmethod
    def _check_reward(cls, value: str) -> str:
        parse_terms(value)
        return value

    @property
    def terms(self) -> tuple[Term, ...]:
        """The rewards that judge, with their weights."""
        return parse_terms(self.reward)

    @property
    def watched(self) -> tuple[Term, ...]:
        """The rewards that are only watched."""
        return ()

    @property
    def mix(self) -> Mix | None:
        """How several rewards become one; `None` where there is one of weight 1, which is taken as it is."""
        mix = Mix({term.name: term.weight for term in self.terms}, self.reward_combine)
        return None if mix.alone and self.terms[0].weight == 1 else mix
