"""The driver: wires the parts of one run, owns their lifetimes, and leaves a folder that explains it.

Processes are dear on small machines, so everything starts at once: the reward on Serve, the rollout actors, the
learner group; the evaluation of the base model runs while the learner is still loading.
"""

import logging
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rayjobs.deepspeed_config import default_config_path, load_deepspeed, resolve_deepspeed
from rayjobs.errors import JobError, OptionError, RunStopped
from rayjobs.options import EMBEDDED, RLHFOptions
from rayjobs.runtime import checkpoints, cluster
from rayjobs.runtime.progress import ProgressLine
from sharpening.evaluation.run_folder import RunFolder, RunFolderError

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at the run
GRACE = 120.0  # seconds that an interrupted learner has to finish its update and write a checkpoint
MAX_RESTARTS = 10  # of one rollout actor


def run(options: RLHFOptions) -> Path:
    """Run RLHF sharpening from start to end.

    Args:
        options: Validated options.

    Returns:
        The run folder.

    Raises:
        RunStopped: If the run had to stop; its last checkpoint is intact.
        OptionError: If the cluster or the folder does not fit the options.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after a checkpoint was written.
    """  # noqa: DOC502
    return Run(options).execute()


class Run:
    """One run's parts and their lifetimes.

    Args:
        options: Validated options.
    """

    def __init__(self, options: RLHFOptions) -> None:
        self.options = options
        self.started = time.monotonic()
        self.progress = ProgressLine()
        self.folder = _open_folder(options)
        self.name = self.folder.path.name
        self.namespace = f"sharpening-{self.name}-{uuid.uuid4().hex[:6]}"
        self.coordinator: Any = None
        self._interrupts = 0
        self._events = 0

    def execute(self) -> Path:
        """Start everything, train, evaluate, tidy up.

        Returns:
            The run folder.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM.
            JobError: If the run had to stop.
        """
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            stack.callback(self.progress.close)
            try:
                self._execute(stack)
            except JobError:
                raise
            except KeyboardInterrupt:
                self.progress.close()
                self.progress.say(f"interrupted; {self._how_to_resume() or 'no checkpoint was written yet'}")
                raise
            except OSError as error:
                raise self._stopped(f"{error.strerror or error} ({self.folder.path})") from error
            except Exception as error:
                raise self._stopped(_word(error)) from error
        return self.folder.path

    def _execute(self, stack: ExitStack) -> None:
        from rayjobs.runtime import report

        options = self.options
        self.progress.say(f"run folder {self.folder.path}")
        if cluster.connect(options, self.namespace):
            stack.callback(_shutdown)
        parts = self._start(stack)
        evaluation = report.Evaluation(options, self.folder)
        before = None
        if evaluation.tasks and not evaluation.before:
            before = self.coordinator.ask.remote("evaluate", evaluation.tasks, 0, "evaluating before")
        training = _Training(parts)
        training.start()
        if before is not None:
            evaluation.take("before", self._await(before))
        self._watch(training)
        self._check(training)
        self.progress.say("training finished")
        if evaluation.tasks:
            found = self.coordinator.ask.remote("evaluate", evaluation.tasks, None, "evaluating after")
            evaluation.take("after", self._await(found))
        saved = self.coordinator.ask.remote("save", [str(self.folder.pipeline.resolve())], None, "saving")
        self._await(saved)
        table = evaluation.finish(self._status()["updates_done"], time.monotonic() - self.started)
        self.progress.close()
        if table:
            print(f"\n{table}\n")
        print(f"run folder: {self.folder.path}", flush=True)

    # -- starting ------------------------------------------------------------------------------------------------

    def _start(self, stack: ExitStack) -> "Parts":
        """Start every process of the run; none is waited for but the coordinator."""
        import ray

        options = self.options
        resources = ray.cluster_resources()
        gpu = options.use_gpu == "yes" or (options.use_gpu == "auto" and resources.get("GPU", 0) > 0)
        reserved = cluster.reserve(options, resources, gpu)
        if reserved.note:
            self.progress.say(reserved.note)
        device = "cuda" if gpu else "cpu"
        self.coordinator = self._start_coordinator(stack)
        app = f"reward-{self.name}"
        actors = self._start_actors(stack, device, reserved, app)
        fresh = options.resume_from_checkpoint is None
        started = self.coordinator.start.remote(actors, fresh)
        serving = threading.Thread(target=self._serve, args=(app, reserved, device), daemon=True)
        serving.start()
        stack.callback(_stop_reward, app, serving)
        self._await(started)
        return Parts(self, device, reserved)

    def _start_coordinator(self, stack: ExitStack) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from rayjobs.runtime.coordinator import Coordinator, CoordinatorSpec

        options = self.options
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Coordinator).options(
            name=f"sharpening/{self.name}/coordinator", namespace=self.namespace, num_cpus=0,
            scheduling_strategy=here, max_concurrency=1000,
        )  # fmt: skip
        spec = CoordinatorSpec(
            run=self.name, run_folder=str(self.folder.path.resolve()), prompts=_training_prompts(options),
            run_seed=options.seed, prompts_per_update=options.prompts_per_update,
            rollout_batch_size=options.rollout_batch_size, staleness=options.staleness,
            updates=options.max_train_steps, max_failed_share=options.max_failed_share,
        )  # fmt: skip
        coordinator = actor.remote(spec)
        stack.callback(_kill, coordinator)
        return coordinator

    def _start_actors(self, stack: ExitStack, device: str, reserved: cluster.Reservations, app: str) -> dict[str, Any]:
        import ray
        from reward_servers.client import ServeScore

        from rayjobs.runtime.rollout import RolloutActor, RolloutSpec, names

        options = self.options
        spec = RolloutSpec(
            pipeline=_pipeline(options), device=device, dtype="float32", threads=options.rollout_threads,
            allow_tf32=options.allow_tf32, method=options.method_options(), run_seed=options.seed,
            score=_ScoreMaker(ServeScore, app, options.reward_timeout),
        )  # fmt: skip
        actors = {}
        for name in names(self.name, options.num_rollout_actors):
            actor = ray.remote(RolloutActor).options(
                name=name, namespace=self.namespace, num_cpus=reserved.rollout, num_gpus=reserved.gpus[0],
                max_restarts=MAX_RESTARTS, max_task_retries=0, scheduling_strategy="SPREAD",
            )  # fmt: skip
            actors[name] = actor.remote(name, spec)
            stack.callback(_kill, actors[name])
        return actors

    def _serve(self, app: str, reserved: cluster.Reservations, device: str) -> None:
        """Start the reward (in a thread: it waits until the replicas are up)."""
        from reward_servers.client import start_reward_app

        from rayjobs.runtime.coordinator import REWARD

        try:
            start_reward_app(_reward_arguments(self.options, reserved, device), name=app)
        except Exception as error:
            self.coordinator.stop.remote(REWARD, f"the reward did not start: {_word(error)}")

    # -- watching ------------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        """The coordinator's status; shows it."""
        import ray

        try:
            status = ray.get(self.coordinator.status.remote(self._events), timeout=60)
        except ray.exceptions.RayActorError as error:
            raise self._stopped("the coordinator actor died") from error
        self._events += len(status["events"])
        self.progress.show(status)
        return status

    def _await(self, reference: Any) -> Any:
        """A result, while the progress is shown; a stop that came instead ends the run."""
        import ray

        from rayjobs.runtime.coordinator import Stop

        while True:
            ready, _ = ray.wait([reference], timeout=POLL)
            self._status()
            self._heed_interrupt()
            if ready:
                result = ray.get(reference)
                if isinstance(result, Stop):
                    raise self._end(result)
                return result

    def _watch(self, training: "_Training") -> None:
        """Show the progress until training ends."""
        while training.is_alive():
            training.join(POLL)
            self._status()
            self._heed_interrupt(training)

    def _check(self, training: "_Training") -> None:
        """Raise why training ended early, if it did."""
        status = self._status()
        if status["stop"] is not None:
            raise self._end(status["stop"])
        if training.error is not None:
            raise self._stopped(f"the learner failed for good: {_word(training.error)}") from training.error
        if status["updates_done"] < self.options.max_train_steps:
            raise self._stopped(f"the learner ended after {status['updates_done']} updates")

    # -- ending early ---------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM end the run in good order, and the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: Any) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed_interrupt(self, training: "_Training | None" = None) -> None:
        """After a signal: let the learner write a checkpoint, then end."""
        from rayjobs.runtime.coordinator import INTERRUPTED

        if not self._interrupts:
            return
        self.coordinator.stop.remote(INTERRUPTED, "interrupted; once more ends at once, without a checkpoint")
        if training is not None:
            deadline = time.monotonic() + GRACE
            while training.is_alive() and time.monotonic() < deadline:
                training.join(POLL)
                self._status()
        raise KeyboardInterrupt

    def _end(self, stop: Any) -> BaseException:
        from rayjobs.runtime.coordinator import INTERRUPTED

        return KeyboardInterrupt() if stop.kind == INTERRUPTED else self._stopped(stop.reason)

    def _stopped(self, reason: str) -> RunStopped:
        return RunStopped(reason, self._how_to_resume())

    def _how_to_resume(self) -> str:
        """The command that goes on from the last checkpoint; empty when there is none."""
        found = checkpoints.listed(self.folder.checkpoints)
        if not found:
            return ""
        config = shlex.quote(str(self.folder.path / "config.json"))
        return f"python rayjobs/rlhf.py --config {config} --resume_from_checkpoint {shlex.quote(str(found[-1]))}"


class Parts:
    """What the learner group is made of.

    Args:
        run: The run.
        device: `cpu` or `cuda`.
        reserved: What each rank reserves.
    """

    def __init__(self, run: Run, device: str, reserved: cluster.Reservations) -> None:
        self.run, self.device, self.reserved = run, device, reserved

    def fit(self) -> Any:
        """Train; blocks until the learner group has ended.

        Returns:
            Ray Train's result.
        """
        import ray.train
        from ray.train.torch import TorchTrainer

        from rayjobs.runtime.learner import LearnerSpec, train_loop

        options, folder = self.run.options, self.run.folder
        path = options.deepspeed_config or default_config_path(self.device)
        spec = LearnerSpec(
            options=options, pipeline=_pipeline(options), deepspeed=resolve_deepspeed(load_deepspeed(path), options),
            device=self.device, checkpoints=str(folder.checkpoints.resolve()),
            resume=options.resume_from_checkpoint and str(Path(options.resume_from_checkpoint).resolve()),
            coordinator=self.run.coordinator,
        )  # fmt: skip
        # Ray Train goes on from its own snapshot when the name is not new. Which checkpoint a resumed run starts from
        # is decided here instead, and a snapshot that a kill cut short must not stand in the way.
        (folder.checkpoints / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
        checkpoints.prune(folder.checkpoints, None)
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"spec": spec},
            scaling_config=ray.train.ScalingConfig(
                num_workers=options.num_learners, use_gpu=self.device == "cuda",
                resources_per_worker=self._resources(),
            ),
            run_config=ray.train.RunConfig(
                name=checkpoints.FOLDER, storage_path=str(folder.path.resolve()),
                failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
            ),
        )  # fmt: skip
        return trainer.fit()

    def _resources(self) -> dict[str, float]:
        cpus = {"CPU": self.reserved.learner}
        return cpus | {"GPU": self.reserved.gpus[1]} if self.device == "cuda" else cpus


class _Training(threading.Thread):
    """`fit` in a thread, so that the main one can show progress and heed signals."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._parts = parts
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train; an error is kept for the main thread."""
        try:
            self._parts.fit()
        except BaseException as error:
            logger.info("training ended with an error", exc_info=error)
            self.error = error


class _ScoreMaker:
    """Makes a rollout actor's reward callable, in the actor's process."""

    def __init__(self, kind: Callable[..., Any], app: str, timeout: float) -> None:
        self._kind, self._app, self._timeout = kind, app, timeout

    def __call__(self) -> Any:
        return self._kind(self._app, timeout=self._timeout)


def _open_folder(options: RLHFOptions) -> RunFolder:
    """Claim a new run folder, or open the one that is resumed."""
    assert options.output_dir is not None  # validation gave it a name
    try:
        if options.resume_from_checkpoint:
            return RunFolder.resume(options.output_dir)
        return RunFolder.create(options.output_dir, options.config())
    except RunFolderError as error:
        raise OptionError("output_dir", str(error), "pass another folder, or --resume_from_checkpoint") from error
    except OSError as error:
        reason = f"the run folder cannot be written: {error.strerror or error}"
        raise OptionError("output_dir", reason, "make room, or pass another folder") from error


def _training_prompts(options: RLHFOptions) -> list[str]:
    if options.prompts == EMBEDDED:
        from sharpening.shapes import assets

        return list(assets.training_prompts())
    from sharpening.data.prompts import PromptFileError, load_prompts

    try:
        return load_prompts(options.prompts, options.caption_column)
    except PromptFileError as error:
        raise OptionError("prompts", str(error), "pass another file") from error


def _pipeline(options: RLHFOptions) -> str:
    """The pipeline's folder as every node knows it; the embedded one lies inside the package."""
    name = options.pretrained_model_name_or_path
    if name == EMBEDDED:
        return EMBEDDED
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    from huggingface_hub import snapshot_download

    return str(snapshot_download(name))


def _reward_arguments(options: RLHFOptions, reserved: cluster.Reservations, device: str) -> dict[str, Any]:
    return {
        "reward": options.reward, "model": options.reward_model, "checkpoint": options.reward_checkpoint,
        "replicas": options.reward_replicas, "threads": options.reward_threads, "num_cpus": reserved.reward,
        "num_gpus": reserved.gpus[2], "device": device,
    }  # fmt: skip


def _stop_reward(app: str, serving: threading.Thread) -> None:
    """Take the reward's application off Serve; other applications of the cluster stay."""
    from ray import serve

    serving.join(timeout=60)
    try:
        serve.delete(app)
    except Exception as error:
        logger.info("the reward application was not deleted", exc_info=error)


def _kill(actor: Any) -> None:
    import ray

    try:
        ray.kill(actor)
    except Exception as error:
        logger.info("an actor was not killed", exc_info=error)


def _shutdown() -> None:
    import ray

    ray.shutdown()


def _word(error: BaseException) -> str:
    """An error in one line: Ray wraps the cause in its own traceback, whose last line says it best."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
