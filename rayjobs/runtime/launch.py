"""Starting a run's processes: coordinator, rollout actors, learner group. Nothing here waits for anything."""

import logging
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjobs import machine
from rayjobs.deepspeed_config import default_config_path, load_deepspeed, resolve_deepspeed
from rayjobs.forking.beside import runtime_env
from rayjobs.options import JobOptions
from rayjobs.placement import selector, spread
from rayjobs.rewards import RewardPlan, reward_plans
from rayjobs.runtime import checkpoints, models, reservations
from rayjobs.runtime.rewards import app_names, served
from sharpening.evaluation.run_folder import RunFolder

if TYPE_CHECKING:
    from rayjobs.runtime.rollout import RolloutSpec
    from sharpening.data.source import Source
    from sharpening.rewards.base import ScoreFn

logger = logging.getLogger(__name__)

MAX_RESTARTS = 10  # of one rollout actor
TRAIN_SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass
class Plan:
    """What a run's processes are started with.

    Attributes:
        options: The run's options.
        folder: The run folder.
        name: The run's name on the dashboard.
        namespace: Ray namespace of its actors.
        device: `cpu` or `cuda`.
        reserved: CPUs and GPUs of each process.
        cpus: CPUs of the cluster.
        source: Training examples; `None` while the pairs are still to be ranked.
        actors: Rollout actors by name, once started.
    """

    options: JobOptions
    folder: RunFolder
    name: str
    namespace: str
    device: str
    reserved: reservations.Reservations
    cpus: float
    source: "Source | None"
    actors: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def rewards(self) -> tuple[RewardPlan, ...]:
        """The rewards that judge, then those that are only watched."""
        return reward_plans(self.options)

    @property
    def apps(self) -> dict[str, str]:
        """Names of the rewards' applications on Serve, by the reward's name."""
        return app_names(self.options.served_rewards or f"reward-{self.name}", self.rewards, self.options.mix)

    @property
    def joins_rewards(self) -> bool:
        """Whether the rewards are served already, by somebody else, and outlive the run."""
        return self.options.served_rewards is not None

    @property
    def scores(self) -> bool:
        """Whether anything of the run asks for the reward: the method, the ranking of pairs, or held-out prompts."""
        options = self.options
        return options.method_options().rewarded or self.source is None or not options.skip_evaluation

    @property
    def rank(self) -> dict[str, float]:
        """What a learner rank reserves."""
        gpu = {"GPU": self.reserved.gpus[1]} if self.device == "cuda" else {}
        return {"CPU": self.reserved.learner} | gpu

    def threads(self, each: int, processes: int) -> dict[str, str]:
        """Environment of processes of one kind; with staleness 0, rollouts and learners compute by turns.

        Args:
            each: Threads of a process.
            processes: How many there are.

        Returns:
            Variables for their runtime environment.
        """
        options = self.options
        at_a_time = reservations.threads_wanted(options) if options.staleness else each * processes
        return reservations.thread_environment(each, at_a_time, self.cpus)


def start_coordinator(plan: Plan) -> Any:
    """Start the coordinator, on the driver's node: it writes to the run folder.

    Args:
        plan: The run.

    Returns:
        Its handle.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from rayjobs.runtime.coordinator import Coordinator, CoordinatorSpec
    from sharpening.data.reading import counts_of

    options, source = plan.options, plan.source
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Coordinator).options(
        name=f"sharpening/{plan.name}/coordinator", namespace=plan.namespace, num_cpus=0, scheduling_strategy=here,
        max_concurrency=1000,
    )  # fmt: skip
    return actor.remote(
        CoordinatorSpec(
            run=plan.name, run_folder=str(plan.folder.path.resolve()), examples=None if source is None else len(source),
            run_seed=options.seed, prompts_per_update=options.prompts_per_update,
            rollout_batch_size=options.rollout_batch_size, staleness=options.staleness,
            updates=options.max_train_steps, max_failed_share=options.max_failed_share, mix=options.mix,
            watched=tuple(term.name for term in options.watched), buckets=counts_of(source),
        )
    )  # fmt: skip


def start_actors(plan: Plan) -> None:
    """Start the rollout actors; they load their models while other things start.

    Args:
        plan: The run; its `actors` are filled.
    """
    import ray

    from rayjobs.runtime.rollout import RolloutActor, names

    options = plan.options
    score, watched = served(plan.apps, plan.rewards, options.mix, options.reward_timeout)
    spec = rollout_spec(options, plan.device, score, watched)
    for name in names(plan.name, options.num_rollout_actors):
        actor = ray.remote(RolloutActor).options(
            name=name, namespace=plan.namespace, num_cpus=plan.reserved.rollout, num_gpus=plan.reserved.gpus[0],
            max_restarts=MAX_RESTARTS, max_task_retries=0, scheduling_strategy=spread(),
            label_selector=selector(options.rollout_nodes),
            runtime_env=runtime_env(plan.threads(options.rollout_threads, options.num_rollout_actors)),
        )  # fmt: skip
        plan.actors[name] = actor.remote(name, spec)


def rollout_spec(options: JobOptions, device: str, score: "ScoreFn", watched: "dict[str, ScoreFn]") -> "RolloutSpec":
    """What the options say to rollout actors.

    Args:
        options: The run's options.
        device: `cpu` or `cuda`.
        score: The reward.
        watched: Rewards that are only asked about held-out prompts, by name.

    Returns:
        What every actor is told.
    """
    from rayjobs.runtime.rollout import RolloutSpec

    tiny = options.pretrained_tiny_vae_path
    return RolloutSpec(
        pipeline=models.pipeline(options), device=device, threads=options.rollout_threads,
        dtype="bfloat16" if options.mixed_precision == "bf16" else "float32",
        allow_tf32=options.allow_tf32, method=options.method, options=options.method_options(),
        run_seed=options.seed, score=score, watched=watched, training=options.training_options(),
        tiny_vae=models.part("pretrained_tiny_vae_path", tiny) if tiny else None,
        resolution=options.resolution, vae=models.vae(options),
    )  # fmt: skip


class Training(threading.Thread):
    """The learner group under Ray Train, in a thread, so that the main one can show progress and heed signals.

    Args:
        plan: The run.
        coordinator: Handle of the coordinator.
        lasting: Whether the Ray outlives the run and has a dashboard.

    Attributes:
        error: What training failed with, if it did.
    """

    def __init__(self, plan: Plan, coordinator: Any, lasting: bool) -> None:
        super().__init__(name="training", daemon=True)
        self._plan, self._coordinator, self._lasting = plan, coordinator, lasting
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train; an error is kept for the main thread."""
        try:
            self._fit()
        except BaseException as error:
            logger.info("training ended with an error", exc_info=error)
            self.error = error

    def _fit(self) -> None:
        import ray.train

        from rayjobs.runtime.learner import train_loop
        from rayjobs.runtime.rendezvous import RendezvousConfig
        from rayjobs.runtime.trainer import Trainer

        plan = self._plan
        # Ray Train goes on from its own snapshot when a name is not new. Which checkpoint a resumed run starts from is
        # decided by us instead, and a snapshot that a kill cut short must not stand in the way.
        (plan.folder.checkpoints / TRAIN_SNAPSHOT).unlink(missing_ok=True)
        checkpoints.prune(plan.folder.checkpoints, None)
        Trainer(
            train_loop,
            lasting=self._lasting,
            train_loop_config={"spec": self._spec()},
            backend_config=RendezvousConfig("nccl" if plan.device == "cuda" else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.options.num_learners,
                use_gpu=plan.device == "cuda",
                resources_per_worker=plan.rank,
                label_selector=selector(plan.options.learner_nodes),
            ),
            run_config=ray.train.RunConfig(
                name=checkpoints.FOLDER,
                storage_path=str(plan.folder.path.resolve()),
                failure_config=ray.train.FailureConfig(max_failures=plan.options.max_failures),
                worker_runtime_env=runtime_env(plan.threads(plan.options.learner_threads, plan.options.num_learners)),
            ),
        ).fit()

    def _spec(self) -> Any:
        from rayjobs.runtime.learner import LearnerSpec

        options = self._plan.options
        config = load_deepspeed(options.deepspeed_config or default_config_path(self._plan.device))
        resume = options.resume_from_checkpoint
        return LearnerSpec(
            options=options, pipeline=models.pipeline(options), deepspeed=resolve_deepspeed(config, options),
            device=self._plan.device, checkpoints=str(self._plan.folder.checkpoints.resolve()),
            resume=str(Path(resume).resolve()) if resume else None, coordinator=self._coordinator,
            vae=models.vae(options),
        )  # fmt: skip


def compiler_note(device: str) -> str:
    """What a machine without a C++ compiler goes without.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        One sentence; empty where there is a compiler.
    """
    if machine.cxx_compiler():
        return ""
    lost = "its fused CPU Adam (optimizer offload) and its shared-memory all-reduce for inference"
    if device == "cuda":
        lost = "its fused GPU Adam and optimizer offload"
    return (
        f"no C++ compiler here: DeepSpeed runs on torch's own AdamW and collectives, which the shipped configurations "
        f"ask for anyway; {lost} cannot be built"
    )
