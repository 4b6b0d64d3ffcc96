"""A sweep from start to end: one cluster, one application of each reward, Ray Tune over the runs, and the tables."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayjobs import machine, placement
from rayjobs.options import JobOptions
from rayjobs.rewards import RewardPlan, reward_plans
from rayjobs.runtime import cluster, reservations
from rayjobs.runtime.labels import label
from rayjobs.runtime.rewards import app_names, app_options, serve_rewards
from rayjobs.sweeping.options import SweepOptions
from rayjobs.sweeping.progress import Progress, say
from rayjobs.sweeping.report import ended, write_report
from rayjobs.sweeping.space import Range, Space
from rayjobs.sweeping.trial import METRIC, POINT, SEED, TIME, TrialSpec, trainable_of

RUNS, TRIALS = "runs", "trials"
DRIVER_CPUS = 0.01  # of a run's own driver, which waits


class Sweep:
    """A sweep and its folder.

    Args:
        options: of the sweep.
        job: options of the job that every run has.
        folder: the sweep's folder.
        command: how it was called, for the report.
    """

    def __init__(self, options: SweepOptions, job: JobOptions, folder: Path, command: str) -> None:
        self.options, self.job, self.folder, self.command = options, job, folder, command
        self.space = Space(options, job)

    def execute(self) -> str:
        """Run all trials and write the tables.

        Returns:
            The table, for the terminal.

        Raises:
            SweepFailed: If no run came to its end.
        """  # noqa: DOC502
        say(f"sweep folder {self.folder}")
        at_a_time = self._at_a_time(None)
        with ExitStack() as stack:
            name = f"sweep-{label(self.folder.name)}"
            threads = at_a_time * self._threads() + sum(plan.replicas * plan.threads for plan in self._rewards)
            connection = cluster.join(self.options, f"sharpening-{name}", threads + 1)
            stack.callback(connection.close)
            if not connection.owned:
                at_a_time = self._at_a_time(_resources())
            reserved = self._reserve(at_a_time)
            served = f"reward-{name}"
            self._serve(served, reserved, stack)
            spec = TrialSpec(self.space, str((self.folder / RUNS).resolve()), served, reserved, str(Path.cwd()))
            results = self._tune(spec, at_a_time)
        runs = [ended(config, error, self.folder / RUNS) for config, error in results]
        return write_report(self.folder, runs, list(self.space.values), self.command)

    # -- what a run takes, and how many fit ----------------------------------------------------------------------

    @property
    def _rewards(self) -> tuple[RewardPlan, ...]:
        return reward_plans(self.job)

    def _threads(self) -> int:
        """Compute threads of one run; its rewards are everybody's."""
        return reservations.threads_wanted(self.job.model_copy(update={"served_rewards": "shared"}))

    def _at_a_time(self, resources: dict[str, float] | None) -> int:
        """Runs at a time: as the user says, or as many as there is room for, and at least one."""
        if self.options.max_concurrent_trials is not None:
            return self.options.max_concurrent_trials
        if resources is None:
            return max(1, machine.cpus() // self._threads())
        asked = sum(plan.replicas * plan.threads for plan in self._rewards)
        room = (resources.get("CPU", 0.0) - asked) / (self._threads() + DRIVER_CPUS)
        if resources.get("GPU"):
            room = min(room, resources["GPU"] / (self.job.num_learners + self.job.num_rollout_actors))
        return max(1, math.floor(room))

    def _reserve(self, at_a_time: int) -> reservations.Reservations:
        """What each process of a run reserves, when so many runs share the cluster with the rewards."""
        import ray

        resources = _resources()
        gpu = self.job.use_gpu == "yes" or (self.job.use_gpu == "auto" and resources.get("GPU", 0.0) > 0)
        wanted = at_a_time * (self._threads() + DRIVER_CPUS) + sum(p.replicas * p.threads for p in self._rewards)
        part = min(1.0, resources.get("CPU", 0.0) / wanted)
        share = {name: amount / at_a_time for name, amount in resources.items()} if gpu else resources
        alone = self.job.model_copy(update={"served_rewards": "shared"})
        found = placement.reserve(alone, ray.nodes(), share | {"CPU": part * self._threads()}, gpu)
        return replace(found, reward=found.cpus(self.job.reward_threads))

    def _serve(self, served: str, reserved: reservations.Reservations, stack: ExitStack) -> None:
        """Start the rewards that all runs ask."""
        from reward_servers.applications import stop_reward_app

        names = app_names(served, self._rewards, self.job.mix)
        labels = placement.selector(self.job.rollout_nodes)
        serve_rewards([
            app_options(plan, names[plan.name], reserved.cpus(plan.threads), reserved.gpus[2], labels)
            for plan in self._rewards
        ])  # fmt: skip
        for name in names.values():
            stack.callback(stop_reward_app, name)

    # -- Ray Tune ------------------------------------------------------------------------------------------------

    def _tune(self, spec: TrialSpec, at_a_time: int) -> list[tuple[dict[str, Any], BaseException | None]]:
        """Run the trials, or those that an interrupted sweep still lacks; their configurations and errors."""
        from ray import tune

        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # each run writes its own metrics
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which draws boxes into the log, however silent it is to be
        # Seconds between two notes of what has ended. At Tune's own ten, a sweep that is killed soon after a run was
        # ended early goes on with that run.
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
        bundle = {"CPU": spec.reserved.rollout} | ({"GPU": spec.reserved.gpus[0]} if spec.reserved.gpus[0] else {})
        bundles = [{"CPU": DRIVER_CPUS}, *[bundle] * self.job.num_rollout_actors]
        trainable = tune.with_resources(trainable_of(spec), tune.PlacementGroupFactory(bundles))
        path = (self.folder / TRIALS).resolve()
        say(f"{self._wanted()} runs, {at_a_time} at a time")
        if tune.Tuner.can_restore(str(path)):
            tuner = tune.Tuner.restore(
                str(path), trainable, resume_unfinished=True, resume_errored=True, param_space=self._param_space()
            )
            say("going on with the trials that are not finished")
        else:
            tuner = tune.Tuner(
                trainable, param_space=self._param_space(), tune_config=self._tune_config(at_a_time, spec.folder),
                run_config=tune.RunConfig(
                    name=TRIALS, storage_path=str(self.folder.resolve()), verbose=0,
                    callbacks=[Progress(self._wanted())],
                    failure_config=tune.FailureConfig(max_failures=self.options.max_trial_failures),
                ),
            )  # fmt: skip
        return [(result.config or {}, result.error) for result in tuner.fit()]

    def _wanted(self) -> int:
        points = self.space.num_samples if self.space.search != "grid" else len(self.space.points())
        return points * len(self.space.seeds)

    def _param_space(self) -> dict[str, Any]:
        """Points and seeds as Tune's grid, or what Optuna draws from."""
        from ray import tune

        if self.space.search != "optuna":
            return {POINT: tune.grid_search(self.space.points()), SEED: tune.grid_search(list(self.space.seeds))}
        return {**{name: _domain(values) for name, values in self.space.values.items()}, SEED: self.space.seeds[0]}

    def _tune_config(self, at_a_time: int, runs: str) -> Any:
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        from rayjobs.sweeping.scheduler import ResumableASHA

        scheduler = None
        if self.options.scheduler == "asha":
            scheduler = ResumableASHA(
                runs, time_attr=TIME, max_t=self.job.max_train_steps, grace_period=self.options.grace_updates,
                reduction_factor=self.options.reduction_factor,
            )  # fmt: skip
        optuna = self.space.search == "optuna"
        return tune.TuneConfig(
            metric=METRIC, mode="max", scheduler=scheduler, max_concurrent_trials=at_a_time,
            search_alg=OptunaSearch(seed=self.space.seeds[0]) if optuna else None,
            num_samples=self.space.num_samples if optuna else 1, reuse_actors=False,
        )  # fmt: skip


def _domain(values: Sequence[float] | Range) -> Any:
    """What Optuna draws a value from."""
    from ray import tune

    if not isinstance(values, Range):
        return tune.choice(list(values))
    if values.whole:
        return tune.randint(int(values.low), int(values.high) + 1)
    return (tune.loguniform if values.logarithmic else tune.uniform)(values.low, values.high)


def _resources() -> dict[str, float]:
    import ray

    return dict(ray.cluster_resources())
