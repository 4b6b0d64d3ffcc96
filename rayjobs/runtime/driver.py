"""The driver: wires the parts of one run, owns their lifetimes, and leaves a folder that explains it.

Processes are dear on small machines, so everything starts at once: the reward on Serve, the rollout actors, the
learner group; the evaluation of the base model runs while the learner is still loading.
"""

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rayjobs import machine, placement
from rayjobs.commands import report_command, resume_command
from rayjobs.errors import JobError, OptionError, RunStopped
from rayjobs.mirror import worker as mirror
from rayjobs.options import JobOptions, PairOptions
from rayjobs.runtime import cluster, launch, models, reservations
from rayjobs.runtime.evaluation import EvaluationPart
from rayjobs.runtime.held_out import HeldOut
from rayjobs.runtime.interrupts import Interrupts
from rayjobs.runtime.joined_rewards import check_joined
from rayjobs.runtime.labels import label
from rayjobs.runtime.look_grids import write_look
from rayjobs.runtime.own_prompts import OwnPrompts, own_grid_name
from rayjobs.runtime.places import PlaceWatch
from rayjobs.runtime.progress import ProgressLine
from rayjobs.runtime.publishing import publish
from rayjobs.runtime.ranked import PAIRS, rank_tasks, training_source, write_ranked
from rayjobs.runtime.report import Report
from rayjobs.runtime.rewards import Rewards
from rayjobs.runtime.state import INTERRUPTED, Stop, last_line
from rayjobs.runtime.training_data import source_note
from rayjobs.tracking import Trackers, open_trackers
from sharpening.evaluation.run_folder import RunFolder, RunFolderError

Observer = Callable[[int, float], None]
"""Told the updates made, and the mean reward of held-out images after them."""
POLL = 0.5  # seconds between two looks at the run
GRACE = 120.0  # seconds that an interrupted learner has to finish its update and write a checkpoint


def run(
    options: JobOptions,
    reserved: reservations.Reservations | None = None,
    observe: Observer | None = None,
    asked: JobOptions | None = None,
) -> Path:
    """Run a fine-tuning job from start to end.

    Args:
        options: Validated options.
        reserved: What each of its processes reserves; `None` shares the whole cluster among them.
        observe: Told how held-out prompts fare, after each look at them.
        asked: The options as they were asked for, before anything was derived, for the model card's command.

    Returns:
        The run folder.

    Raises:
        RunStopped: If the run had to stop; its last checkpoint is intact.
        OptionError: If the cluster or the folder does not fit the options.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after a checkpoint was written.
        SystemExit: From `observe`, which ends the run so; after a checkpoint was written.
    """  # noqa: DOC502
    return Run(options, reserved, observe, asked).execute()


class Run:
    """One run's parts and their lifetimes.

    Args:
        options: Validated options.
        reserved: What each of its processes reserves; `None` shares the whole cluster among them.
        observe: Told how held-out prompts fare, after each look at them.
        asked: As for `run`.
    """

    def __init__(
        self,
        options: JobOptions,
        reserved: reservations.Reservations | None = None,
        observe: Observer | None = None,
        asked: JobOptions | None = None,
    ) -> None:
        self._reserved, self._observe = reserved, observe
        self.options, self.asked = options, asked or options
        self.started = time.monotonic()
        self.progress = ProgressLine(options.method)
        store = mirror.prepare(options, self.progress.say)
        self.folder = open_folder(options)
        self.mirror = mirror.open_mirror(store, options, self.folder, self.progress.say)
        self.coordinator: Any = None
        self.training: launch.Training | None = None
        self._places: PlaceWatch | None = None
        self.trackers = Trackers([], self.progress.say)
        self._completed = False
        self._interrupts = Interrupts()
        self._events = 0

    def execute(self) -> Path:
        """Start everything, train, evaluate, tidy up.

        Returns:
            The run folder.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM.
            SystemExit: From `observe`.
            JobError: If the run had to stop.
        """
        with ExitStack() as stack:
            stack.callback(self._close_mirror)
            stack.callback(self._write_page)
            stack.callback(self.progress.close)
            stack.callback(self._close_trackers)
            stack.enter_context(self._interrupts.caught())
            try:
                self._execute(stack)
            except JobError:
                raise
            except KeyboardInterrupt:
                self.progress.close()
                how = self._how_to_resume()
                self.progress.say(f"go on with {how}" if how else "no checkpoint was written yet")
                raise
            except SystemExit:  # of whoever was told how held-out prompts fare, or of a Ray that is told to end early
                if self.coordinator is not None:
                    self.coordinator.stop.remote(INTERRUPTED, "ended early")
                    self._settle()
                raise
            except OSError as error:
                raise self._stopped(f"{error.strerror or error} ({self.folder.path})") from error
            except Exception as error:
                raise self._stopped(last_line(error)) from error
        return self.folder.path

    def _execute(self, stack: ExitStack) -> None:
        copied = f", copied to {self.options.output_dir}" if self.mirror else ""
        self.progress.say(f"run folder {self.folder.path}{copied}")
        self.options = models.settle_model(self.options)
        self.trackers = open_trackers(self.options, self.folder, self.progress.say)
        namespace = f"sharpening-{label(self.folder.path.name)}-{uuid.uuid4().hex[:6]}"
        connection = cluster.connect(self.options, namespace)
        stack.callback(connection.close)
        self._interrupts.catch()  # again: Ray, when it starts, takes SIGTERM for itself
        self._start(stack, connection, namespace)
        report = Report(self.options, self.folder)
        own = OwnPrompts(self.options, self.folder, report.headline)
        first = [*([] if report.before else report.tasks), *([] if own.begun else own.tasks)]
        before = self.coordinator.ask.remote("evaluate", first, 0, "evaluating before") if first else None
        assert self.training is not None
        self.training.start()
        if self.source is None:
            self._rank(report)
        if before is not None:
            parts, drawn = own.split(self._await(before))
            if parts:
                report.take("before", parts)
            self._show_own(own, drawn, report)
        self.trackers.sample(self.folder.path / "samples_before.png", 0)
        self._watch(self.training, report, own)
        self._check(self.training)
        if report.tasks:
            after = self.coordinator.ask.remote("evaluate", [*report.tasks, *own.tasks], None, "evaluating after")
            parts, drawn = own.split(self._await(after))
            report.take("after", parts)
            self._show_own(own, drawn, report)
            for name in ("samples_after.png", "samples_compared.png"):
                self.trackers.sample(self.folder.path / name, self.options.max_train_steps)
        saved = self.coordinator.ask.remote("save", [str(self.folder.pipeline.resolve())], None, "saving the pipeline")
        self._await(saved)
        table = report.finish(self._status()["updates_done"], time.monotonic() - self.started)
        self.trackers.results(self.folder.path)
        self._completed = True
        publish(self.folder, self.options, self.asked, self.progress.say)
        self.progress.close()
        print(
            f"\n{table}\n\nrun folder: {self.folder.path}" if table else f"run folder: {self.folder.path}", flush=True
        )

    def _start(self, stack: ExitStack, connection: cluster.Connection, namespace: str) -> None:
        """Start every process of the run but the learner group; none is waited for."""
        import ray

        options = self.options
        resources = ray.cluster_resources()
        gpu = options.use_gpu == "yes" or (options.use_gpu == "auto" and resources.get("GPU", 0) > 0)
        device = "cuda" if gpu else "cpu"
        reserved = self._reserved or placement.reserve(options, ray.nodes(), resources, gpu)
        self.source = training_source(options, self.folder)
        cpus = machine.cpus() if connection.owned else resources["CPU"]  # a Ray of our own counts threads, not cores
        plan = launch.Plan(
            options, self.folder, label(self.folder.path.name), namespace, device, reserved, cpus, self.source
        )
        if plan.joins_rewards and plan.scores:
            check_joined(plan.apps, plan.rewards, connection.owned)
        for note in (reserved.note, launch.compiler_note(device), source_note(self.source)):
            if note:
                self.progress.say(note)
        self.coordinator = launch.start_coordinator(plan)
        self._interrupts.patient = True
        launch.start_actors(plan)
        rewards = Rewards(plan, self.coordinator)
        rewards.start()
        # A Ray of our own ends with the run, and gives everything back.
        lasting = not connection.owned and cluster.has_dashboard()
        self.training = launch.Training(plan, self.coordinator, lasting)
        if not connection.owned:  # a Ray of our own has room for all, and ends as a whole
            self._places = PlaceWatch(plan.rank, options.num_learners, self.progress.say)
            for actor in (self.coordinator, *plan.actors.values()):
                stack.callback(ray.kill, actor)
            stack.callback(rewards.stop)
        stack.callback(rewards.end)

    def _rank(self, report: Report) -> None:
        """Have the base model draw images and the reward rank them, once; the pairs stay in the run folder."""
        options = self.options
        assert isinstance(options, PairOptions)
        found = self._await(self.coordinator.ask.remote("rank", rank_tasks(options), 0, "ranking pairs"))
        pairs, unused = write_ranked(found, options, self.folder)
        for part in found:
            report.account("rank", part.nfe, part.seconds, part.images_scored)
        self.progress.say(f"{pairs} pairs were ranked{unused}; they are in {self.folder.path / PAIRS}")
        self.coordinator.learn_from.remote(pairs)

    # -- watching ------------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        """The coordinator's status; shows it."""
        import ray

        reference = self.coordinator.status.remote(self._events)
        while not ray.wait([reference], timeout=POLL)[0]:
            self._interrupts.heed_second()
        try:
            status = ray.get(reference)
            if self.trackers and status["updates_done"] > self.trackers.updates:
                self.trackers.rows(ray.get(self.coordinator.rows.remote(self.trackers.updates)))
        except ray.exceptions.RayActorError as error:
            raise self._stopped(f"the coordinator actor died: {last_line(error)}") from error
        self._events += len(status["events"])
        self.progress.show(status)
        if self._places is not None:
            self._places.look()
        return status

    def _await(self, reference: Any) -> Any:
        """A result, while the progress is shown; a stop that came instead ends the run."""
        import ray

        while not ray.wait([reference], timeout=POLL)[0]:
            self._status()
            self._heed_interrupt()
        self._status()
        result = ray.get(reference)
        if isinstance(result, Stop):
            self._settle()
            raise self._end(result)
        return result

    def _show_own(self, own: OwnPrompts, parts: list[EvaluationPart], report: Report) -> None:
        """Keep and tell what the user's own prompts look like, where there are any."""
        if parts:
            report.count(parts)
            own.take(parts)
            self.progress.say(own.told())
            self.trackers.own(self.folder.path / own_grid_name(own.updates), own.means, own.updates)

    def _watch(self, training: launch.Training, report: Report, own: OwnPrompts) -> None:
        """Show the progress until training ends; look at held-out prompts, and the user's own, now and then."""
        held_out = HeldOut(self.options, self.folder.path, report.headline)
        while training.is_alive():
            training.join(POLL)
            status = self._status()
            self._heed_interrupt()
            if status["stop"] is None and status["row"] and held_out.due(status["updates_done"]):
                tasks = [*held_out.tasks, *own.tasks]
                parts, drawn = own.split(
                    self._await(self.coordinator.ask.remote("evaluate", tasks, None, "validating"))
                )
                report.count(parts)
                alarm = held_out.take(parts, status["row"])
                write_look(self.folder, parts, self.options.guidance_scale, self.options.seed, report.headline)
                self.trackers.looks(held_out.rows, self.folder.path)
                self.progress.say(held_out.told())
                self._show_own(own, drawn, report)
                self.coordinator.show.remote(held_out.gauges())
                if self._observe and held_out.newest["reward"] is not None:
                    self._observe(held_out.newest["update"], held_out.newest["reward"])
                if alarm:
                    self.coordinator.note.remote(alarm, "alarm")

    def _check(self, training: launch.Training) -> None:
        """Raise why training ended early, if it did."""
        status = self._status()
        if status["stop"] is not None:
            raise self._end(status["stop"])
        if training.error is not None:
            raise self._stopped(f"the learner group failed for good: {last_line(training.error)}") from training.error
        if status["updates_done"] < self.options.max_train_steps:
            raise self._stopped(f"the learner group ended after {status['updates_done']} updates")

    def _write_page(self) -> None:
        """The page that explains the run, however it ended. What else is in the folder does not hang on it."""
        from rayjobs.page import PAGE, write_page

        try:
            write_page(self.folder.path, self.folder.path / PAGE)
        except Exception as error:
            how = report_command(self.folder)
            self.progress.say(f"{PAGE} was not written ({last_line(error)}); make it with {how}")

    def _close_trackers(self) -> None:
        self.trackers.close(self._completed)

    def _close_mirror(self) -> None:
        """Copy what is left, however the run ended; nothing changes in the folder after this."""
        if self.mirror is not None:
            self.mirror.close()

    # -- ending early --------------------------------------------------------------------------------------------

    def _heed_interrupt(self) -> None:
        """After a signal: let the learner write a checkpoint, then end."""
        if not self._interrupts.count:
            return
        self.coordinator.stop.remote(INTERRUPTED, "interrupted; a second time ends at once, without a checkpoint")
        self._settle()
        raise KeyboardInterrupt

    def _settle(self) -> None:
        """Give the learner group time to end by itself: it writes a checkpoint when its weights are sound."""
        deadline = time.monotonic() + GRACE
        while self.training is not None and self.training.is_alive() and time.monotonic() < deadline:
            self.training.join(POLL)
            self._status()
            self._interrupts.heed_second()

    def _end(self, stop: Stop) -> BaseException:
        return KeyboardInterrupt() if stop.kind == INTERRUPTED else self._stopped(stop.reason)

    def _stopped(self, reason: str) -> RunStopped:
        return RunStopped(reason, self._how_to_resume())

    def _how_to_resume(self) -> str:
        address = self.options.output_dir if self.mirror else None
        return resume_command(self.options.method, self.folder, address)


def open_folder(options: JobOptions) -> RunFolder:
    """Claim a new run folder, or open the one that is resumed.

    Args:
        options: Validated options.

    Returns:
        The folder.

    Raises:
        OptionError: If it belongs to another run or cannot be written.
    """
    assert options.run_folder is not None  # validation gave it a name
    name = options.folder_option
    try:
        if options.resume_from_checkpoint:
            return RunFolder.resume(options.run_folder)
        return RunFolder.create(options.run_folder, options.config())
    except RunFolderError as error:
        raise OptionError(name, str(error), "pass another folder, or --resume_from_checkpoint") from error
    except OSError as error:
        reason = f"the run folder cannot be written: {error.strerror or error}"
        raise OptionError(name, reason, "make room, or pass another folder") from error
