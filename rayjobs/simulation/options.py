"""The options of `rayjobs/capacity.py`. Nothing heavy is imported."""

import math
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from rayjobs.options import Options, option

GROUPS = {
    "run": "where the stage times come from",
    "layout": "what is varied; every combination is simulated",
    "network": "between nodes",
    "simulation": "the simulation itself",
    "output": "where results go",
}
LISTS = ("actors", "staleness", "reward_replicas", "learners")


class CapacityOptions(Options):
    """What a capacity plan is told."""

    groups: ClassVar[dict[str, str]] = GROUPS
    about: ClassVar[str] = (
        "Simulates a run from the stage times of one that was measured: throughput, idle shares, queues, and what "
        "saturates first, for any number of actors, replicas and learners. What is not given is as in that run."
    )

    run: str | None = option(
        None, "run", "folder or file", "a run folder, or a JSON or YAML file of stated stage times; may stand first "
        "without --run", shown="none: it must be given",
    )  # fmt: skip

    actors: tuple[int, ...] = option((1, 2, 4, 8, 16, 32, 64), "layout", "processes", "rollout actors")
    staleness: tuple[int, ...] = option((0, 1, 2), "layout", "updates", "updates that rollouts may lag behind")
    reward_replicas: tuple[int, ...] | None = option(
        None, "layout", "processes", "replicas of the reward", shown="the run's"
    )
    actors_per_replica: int | None = option(
        None, "layout", "processes", "as many replicas as this makes instead", shown="off", ge=1
    )
    learners: tuple[int, ...] | None = option(None, "layout", "processes", "learner ranks", shown="the run's")
    actors_per_learner: int | None = option(
        None, "layout", "processes", "as many learner ranks as this makes instead", shown="off", ge=1
    )
    prompts_per_update: int | None = option(
        None, "layout", "prompts an update", "examples behind one update", shown="the run's", ge=1
    )
    prompts_per_actor: int | None = option(
        None, "layout", "prompts an update", "as many examples behind an update as this makes for all actors instead",
        shown="off", ge=1,
    )  # fmt: skip
    rollout_batch_size: int | None = option(
        None, "layout", "prompts a task", "examples that one rollout task holds", shown="the run's", ge=1
    )
    reward_concurrency: int | None = option(
        None, "layout", "tasks",
        "tasks that a replica scores at a time, none slower for it: 1 for a scorer on a device, more for one that "
        "waits for a remote service", shown="1, or the file's", ge=1,
    )  # fmt: skip

    routing: Literal["remembered", "asked"] | None = option(
        None, "layout", "-",
        "which queue lengths actors choose a replica by: those that Serve's handles remember, or, with "
        "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S=0, those that replicas tell", shown="remembered, or the file's",
    )  # fmt: skip

    actors_per_node: int | None = option(
        None, "network", "processes", "actors that share a node's copy of the weights; 0: one machine, no network",
        shown="0, or the file's", ge=0,
    )  # fmt: skip
    network_gbit: float | None = option(
        None, "network", "Gbit/s", "a node's line", shown="unlimited, or the file's", gt=0
    )
    broadcast: Literal["head", "tree"] = option(
        "head", "network", "-", "nodes fetch weights from the head, or pass them on to one another"
    )

    updates: int = option(30, "simulation", "updates", "updates that are simulated", ge=8)
    seed: int = option(0, "simulation", "integer", "seed of the tasks' spread", ge=0)

    output_dir: str | None = option(
        None, "output", "folder", "where capacity.json and capacity.png go", shown="the run's, or runs/capacity"
    )

    @field_validator(*LISTS, mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Accept `1 2 4` and `1,2,4`."""
        if isinstance(value, (list, tuple)):
            value = ",".join(str(item) for item in value)
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator(*LISTS)
    @classmethod
    def _check_counts(cls, value: tuple[int, ...] | None, info: Any) -> tuple[int, ...] | None:
        least = 0 if info.field_name == "staleness" else 1
        if value is not None and (not value or min(value) < least):
            raise ValueError(f"every number must be at least {least}, and there must be one")
        return value

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second of a node's line; `None` where the run's or file's counts."""
        return None if self.network_gbit is None else self.network_gbit * 1e9 / 8


def per(actors: int, each: int | None, otherwise: int) -> int:
    """How many processes so many actors need, at `each` actors a process.

    Args:
        actors: Rollout actors.
        each: Actors a process; `None` leaves the number as it is.
        otherwise: That number.

    Returns:
        The number of processes.
    """
    return otherwise if each is None else math.ceil(actors / each)
