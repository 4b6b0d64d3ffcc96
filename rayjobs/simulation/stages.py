"""What a simulated run is made of: how long its stages take, and how it is laid out over machines."""

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Stages:
    """Seconds and bytes of a run's stages, as they were measured or assumed, and the sizes they belong to.

    Attributes:
        prompts_per_update: Prompts behind one update.
        rollout_batch_size: Prompts in a rollout task.
        images_per_prompt: Images scored of a prompt.
        num_learners: Learner ranks.
        before_reward: Seconds of a task until its images go to the reward: generate, branch, decode.
        reward: Seconds that a replica takes for a task's images.
        after_reward: Seconds of a task after it: the reference.
        spread: Standard deviation of a task's seconds over their mean.
        hand_over: Seconds between two tasks of an actor with work to do: messages, copies of experience.
        coordinator: Seconds of the coordinator's one thread for a task.
        load: Seconds in which an actor takes new weights over, once its node has them.
        learn: Seconds of an update's forward and backward passes and its step.
        publish: Seconds in which rank 0 gathers and packs the weights.
        finish: Seconds from there until the coordinator has stored them, without the network.
        checkpoint: Seconds of a checkpoint.
        weights_bytes: Of a version.
        gradient_bytes: That ranks exchange for an optimiser step.
        experience_bytes: Of a task.
    """

    prompts_per_update: int
    rollout_batch_size: int
    images_per_prompt: float
    num_learners: int
    before_reward: float
    reward: float
    after_reward: float
    spread: float = 0.0
    hand_over: float = 0.0
    coordinator: float = 0.001
    load: float = 0.0
    learn: float = 0.0
    publish: float = 0.0
    finish: float = 0.0
    checkpoint: float = 0.0
    weights_bytes: float = 0.0
    gradient_bytes: float = 0.0
    experience_bytes: float = 0.0


@dataclass(frozen=True)
class Layout:
    """How a run is laid out.

    Attributes:
        actors: Rollout actors.
        reward_replicas: Replicas of the reward.
        learners: Learner ranks.
        staleness: Updates that rollouts may lag behind.
        prompts_per_update: Prompts behind one update.
        rollout_batch_size: Prompts in a rollout task.
        reward_concurrency: Tasks that a replica works on at a time, none slower for it: 1 for a scorer on a device,
            more for one that waits for a remote service.
        routing: How an actor chooses a replica, always the shorter queue of two: "remembered", as Serve's handles do by
            default, by the lengths that each one remembers of its own requests; or "asked", with
            RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S=0, by the lengths that replicas tell.
        actors_per_node: Actors that share one copy of the weights; 0 when all are on the head's node.
        learners_per_node: Ranks that exchange gradients without the network.
        bandwidth: Bytes a second of a node's line.
        tree: Whether nodes pass weights on (a binomial tree) or all fetch them from the head.
        checkpointing_steps: Updates between checkpoints.
    """

    actors: int
    reward_replicas: int
    learners: int
    staleness: int
    prompts_per_update: int
    rollout_batch_size: int
    reward_concurrency: int = 1
    routing: Literal["remembered", "asked"] = "remembered"
    actors_per_node: int = 0
    learners_per_node: int = 8
    bandwidth: float = math.inf
    tree: bool = False
    checkpointing_steps: int = 10

    @property
    def nodes(self) -> int:
        """Nodes that fetch weights over the network."""
        return math.ceil(self.actors / self.actors_per_node) if self.actors_per_node else 0

    @property
    def tasks(self) -> int:
        """Rollout tasks of an update."""
        return math.ceil(self.prompts_per_update / self.rollout_batch_size)


def scaled(stages: Stages, layout: Layout) -> Stages:
    """Stages of another layout: time grows with the prompts, and learners share an update's.

    A larger batch costs as much a prompt as the measured one (on GPUs it usually costs less), and ranks on several
    nodes exchange gradients in a ring over their lines: each sends and receives 2 (k − 1) / k of them, k nodes.

    Args:
        stages: As measured.
        layout: How the run is laid out.

    Returns:
        Seconds a task and an update of this layout.
    """
    task = layout.rollout_batch_size / stages.rollout_batch_size
    update = layout.prompts_per_update / stages.prompts_per_update
    nodes = math.ceil(layout.learners / layout.learners_per_node)
    ring = 2 * (nodes - 1) / nodes * stages.gradient_bytes / layout.bandwidth
    fetch = layout.tasks * task * stages.experience_bytes / (nodes * layout.bandwidth)
    return replace(
        stages,
        prompts_per_update=layout.prompts_per_update, rollout_batch_size=layout.rollout_batch_size,
        num_learners=layout.learners, before_reward=stages.before_reward * task, reward=stages.reward * task,
        after_reward=stages.after_reward * task, experience_bytes=stages.experience_bytes * task,
        learn=stages.learn * update * stages.num_learners / layout.learners + ring + fetch,
    )  # fmt: skip
