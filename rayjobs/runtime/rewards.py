"""The run's rewards on Serve: an application each, started together, watched, and asked by the rollout actors."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rayjobs.forking.beside import executable
from rayjobs.placement import selector
from rayjobs.rewards import RewardPlan
from rayjobs.runtime.ranked import ranked_pairs
from rayjobs.runtime.state import REWARD, last_line
from sharpening.rewards.mix import Mix

if TYPE_CHECKING:
    from rayjobs.runtime.launch import Plan
    from reward_servers.options import RewardAppOptions
    from sharpening.rewards.base import ScoreFn

logger = logging.getLogger(__name__)

REWARD_START_S = 600.0  # for a replica to load on a busy machine; one that fails to is noticed at once
REWARD_POLL_S = 1.0  # seconds between two looks at the replicas


def app_names(alone: str, plans: Sequence[RewardPlan], mix: Mix | None) -> dict[str, str]:
    """What a run's rewards are called on Serve.

    Args:
        alone: What one reward that judges is called; a run's own are `reward-<run>`.
        plans: The run's rewards.
        mix: How several are combined; `None` where one judges.

    Returns:
        Names of applications by the reward's name: `alone` for the one that judges, else `<alone>-<reward>`.
    """
    return {plan.name: alone if mix is None and not plan.watched else f"{alone}-{plan.name}" for plan in plans}


def app_options(
    plan: RewardPlan, name: str, cpus: float, gpus: float, labels: dict[str, str] | None = None
) -> "RewardAppOptions":
    """What a reward's application is started with.

    Args:
        plan: The reward.
        name: The application's name.
        cpus: CPUs of a replica.
        gpus: GPUs of a replica, where the reward does not say.
        labels: Labels of the nodes that replicas may run on; `None` for any node.

    Returns:
        The options.
    """
    from reward_servers.options import RewardAppOptions

    return RewardAppOptions(
        name=name, reward=plan.term.reward, model=plan.model, checkpoint=plan.checkpoint, options=plan.options,
        num_replicas=plan.replicas, num_threads=plan.threads, num_cpus=cpus,
        num_gpus=gpus if plan.num_gpus is None else plan.num_gpus, node_labels=labels or {},
        py_executable=executable(),
    )  # fmt: skip


def serve_rewards(wanted: "Sequence[RewardAppOptions]") -> None:
    """Start rewards on Serve and wait until they answer; its own lines stay out of the job's.

    Args:
        wanted: The applications.

    Raises:
        RewardUnavailable: If one does not come up; all are removed again.
    """  # noqa: DOC502
    from reward_servers.applications import start_reward_apps

    # They would run through the progress line; what matters of them the job says.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    start_reward_apps(wanted, timeout_s=REWARD_START_S)


def served(
    names: dict[str, str], plans: Sequence[RewardPlan], mix: Mix | None, timeout_s: float
) -> "tuple[ScoreFn, dict[str, ScoreFn]]":
    """Ways to ask the applications, as an actor takes them with it.

    Args:
        names: Of the applications, from `app_names`.
        plans: The run's rewards.
        mix: How several are combined; `None` where one judges.
        timeout_s: Seconds for which an application may stay down.

    Returns:
        The reward that judges, and those that are only watched by name.
    """
    from reward_servers.client import ServeScore
    from sharpening.rewards.combined import CombinedScore

    judging: dict[str, ScoreFn] = {}
    watched: dict[str, ScoreFn] = {}
    for plan in plans:
        (watched if plan.watched else judging)[plan.name] = ServeScore(names[plan.name], deadline_s=timeout_s)
    return (CombinedScore(judging, mix) if mix else next(iter(judging.values()))), watched


class Rewards(threading.Thread):
    """Starts the rewards on Serve, puts the rollout actors to work once they answer, and tells of replicas that die.

    Serve replaces a dead replica by itself, and a request that waited for it may never notice; the run's log should.

    Args:
        plan: The run.
        coordinator: Handle of the coordinator.
    """

    def __init__(self, plan: "Plan", coordinator: Any) -> None:
        super().__init__(name="rewards", daemon=True)
        self._plan, self._coordinator = plan, coordinator
        self._ended = threading.Event()

    def run(self) -> None:
        """Start them, then watch them; a failure to start ends the run."""
        import ray

        from reward_servers.applications import replica_counts

        options, reserved = self._plan.options, self._plan.reserved
        names, labels = self._plan.apps, selector(options.rollout_nodes)
        wanted = [
            app_options(plan, names[plan.name], reserved.cpus(plan.threads), reserved.gpus[2], labels)
            for plan in self._plan.rewards
        ]
        try:
            if self._plan.scores and not self._plan.joins_rewards:
                serve_rewards(wanted)
        except Exception as error:
            logger.info("a reward did not start", exc_info=error)
            self._coordinator.stop.remote(REWARD, last_line(error))
        else:
            source = self._plan.source or ranked_pairs(options, self._plan.folder)
            self._source = ray.put(source)  # kept: a restarted actor reads it again
            fresh = options.resume_from_checkpoint is None
            self._coordinator.start.remote(self._plan.actors, [self._source], fresh)
            if self._plan.scores:
                joined = replica_counts() if self._plan.joins_rewards else {}
                self._watch({app.name: joined.get(app.name, app.num_replicas) for app in wanted})

    def _watch(self, wanted: dict[str, int]) -> None:
        """Say when replicas are missing, and when they are all back."""
        from reward_servers.applications import replica_counts

        watch = ReplicaWatch(wanted, self._plan.options.reward_timeout, self._coordinator.note.remote)
        while not self._ended.wait(REWARD_POLL_S):
            try:
                watch.look(replica_counts())
            except Exception as error:  # Serve's controller is being restarted, or Ray is going down
                logger.info("Serve does not tell about its replicas", exc_info=error)

    def end(self) -> None:
        """Stop watching; before Ray is left, for asking Serve without it would start another Ray."""
        self._ended.set()
        self.join(timeout=60)

    def stop(self) -> None:
        """Take the applications off Serve; others of the cluster stay."""
        from reward_servers.applications import stop_reward_app

        if not self._plan.scores or self._plan.joins_rewards:
            return
        for name in self._plan.apps.values():
            try:
                stop_reward_app(name)
            except Exception as error:
                logger.info("a reward application was not removed", exc_info=error)


class ReplicaWatch:
    """Tells when an application has lost replicas, or is gone, and when it is whole again.

    Args:
        wanted: Replicas by application.
        timeout_s: Seconds for which an application may stay down.
        tell: Told a sentence.
    """

    def __init__(self, wanted: dict[str, int], timeout_s: float, tell: Callable[[str], Any]) -> None:
        self._wanted, self._timeout_s, self._tell = wanted, timeout_s, tell
        self._missing = dict.fromkeys(wanted, 0)  # replicas at the last look, all and one more where it was gone

    def look(self, running: dict[str, int]) -> None:
        """Compare what runs with what is wanted.

        Args:
            running: Running replicas by application; those that Serve does not have, or deletes, are absent.
        """
        for name, wanted in self._wanted.items():
            gone = wanted + 1
            missing, known = max(0, wanted - running.get(name, -1)), self._missing[name]
            if missing == gone and known < gone:
                self._tell(f"'{name}' is not on Serve any more; scoring waits for it, {self._timeout_s:g} s at most")
            elif missing and not known:
                self._tell(f"{missing} of {wanted} replicas of '{name}' died; Serve starts as many again")
            elif known and not missing:
                self._tell(f"'{name}' has all its replicas again")
            self._missing[name] = missing
