"""How a run's processes share a cluster's CPUs and GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rayjobs import machine
from rayjobs.errors import OptionError
from rayjobs.options import JobOptions
from rayjobs.rewards import RewardPlan, reward_plans


@dataclass(frozen=True)
class Reservations:
    """CPUs and GPUs that the run's processes reserve, each.

    Attributes:
        rollout: CPUs of a rollout actor.
        learner: CPUs of a learner rank.
        reward: CPUs of a reward replica with `reward_threads`.
        gpus: GPUs of a rollout actor, of a learner rank and of a reward replica.
        note: What a user should know about it; may be empty.
        part: CPUs that a thread reserves.
    """

    rollout: float
    learner: float
    reward: float
    gpus: tuple[float, float, float]
    note: str
    part: float = 1.0

    def cpus(self, threads: int) -> float:
        """CPUs that a process of so many threads reserves.

        Args:
            threads: Its threads.

        Returns:
            Hundredths of a CPU, rounded down, at least one.
        """
        return max(0.01, int(self.part * threads * 100) / 100)


def thread_environment(threads: int, at_a_time: int, available: float) -> dict[str, str]:
    """Environment of a process that computes on some threads.

    OpenMP's threads spin for some milliseconds between two operations, which is what makes a few of them fast: asleep,
    they double a learner's time (docs/performance.md). But threads that spin starve those they wait for, where more of
    them compute at a time than there are CPUs.

    Args:
        threads: torch threads of the process.
        at_a_time: Threads that compute at the same time on its machine, this process's among them.
        available: CPUs of its machine.

    Returns:
        Variables for its runtime environment.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return variables | {"OMP_WAIT_POLICY": "PASSIVE"} if at_a_time > available else variables


def threads_wanted(options: JobOptions) -> int:
    """Compute threads of all processes of a run.

    Args:
        options: The run's options.

    Returns:
        Their number.
    """
    return (
        options.num_rollout_actors * options.rollout_threads
        + options.num_learners * options.learner_threads
        + sum(plan.replicas * plan.threads for plan in own_rewards(options))
    )


def _most_threads(options: JobOptions) -> int:
    """Compute threads of the process of a run that has the most."""
    counts = [(options.num_rollout_actors, options.rollout_threads), (options.num_learners, options.learner_threads)]
    counts += [(plan.replicas, plan.threads) for plan in own_rewards(options)]
    return max(threads for processes, threads in counts if processes)


def own_rewards(options: JobOptions) -> tuple[RewardPlan, ...]:
    """The rewards that a run serves itself.

    Args:
        options: The run's options.

    Returns:
        Their plans; none where it asks rewards that are served already.
    """
    return () if options.served_rewards else reward_plans(options)


def reserve(
    options: JobOptions, resources: dict[str, float], gpu: bool, nodes: Sequence[float] | None = None
) -> Reservations:
    """Share a cluster's CPUs among the run's processes.

    Rollout actors, learners and the reward take turns more often than they compete, so on a machine with fewer CPUs
    than threads each reserves a part of what it uses: everything is scheduled, and the operating system shares the
    cores out. On several nodes each reserves so little that there is room for the last one too, wherever Ray has put
    the others: while one has no place, less than it takes is free on every node, and that much may be lost on each.

    Args:
        options: The run's options.
        resources: `ray.cluster_resources()`.
        gpu: Whether learners and actors run on GPUs.
        nodes: CPUs of each node that has any; `None` for one that has them all.

    Returns:
        The reservations.

    Raises:
        OptionError: If the learners outnumber the cluster's CPUs or GPUs.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    have, kind = (gpus, "GPUs") if gpu else (cpus, "CPUs")
    if options.num_learners > have:
        raise OptionError(
            "num_learners", f"{options.num_learners} learners need as many {kind}, and the cluster has {have:g}",
            f"pass at most {have:g}",
        )  # fmt: skip
    wanted, largest = threads_wanted(options), _most_threads(options)
    nodes = nodes or [cpus]
    others = len(nodes) - 1
    part = min(1.0, cpus / (wanted + others * largest), max(nodes) / largest)
    # Of whole CPUs, one less than it takes is the most that a node without a place for it has free.
    if wanted + others * (largest - 1) <= min(cpus, sum(map(int, nodes))) and largest <= max(nodes):
        part = 1.0
    # A Ray of our own, which is one node, counts threads and not cores.
    real = machine.cpus() if cpus == wanted and not others else int(cpus)
    note = f"{wanted} threads share {real} CPUs: rollouts, reward and learner take turns" if real < wanted else ""
    unshared = Reservations(1, 1, 1, _gpu_parts(options, gpus) if gpu else (0.0, 0.0, 0.0), note, part)
    return replace(
        unshared, rollout=unshared.cpus(options.rollout_threads), learner=unshared.cpus(options.learner_threads),
        reward=unshared.cpus(options.reward_threads),
    )  # fmt: skip


def _gpu_parts(options: JobOptions, gpus: float) -> tuple[float, float, float]:
    """A GPU a learner; what is left, or a part of the learners' when nothing is, for actors and rewards."""
    others = options.num_rollout_actors + sum(plan.replicas for plan in own_rewards(options))
    left = gpus - options.num_learners
    if left >= others:
        return 1.0, 1.0, 1.0
    if left >= 1:
        part = int(left / others * 100) / 100
        return part, 1.0, part
    # More than half a GPU for a learner, so that no two of them meet on one: NCCL refuses that.
    part = int(0.4 * gpus / others * 100) / 100
    return part, 0.6, part
