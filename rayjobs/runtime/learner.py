"""The learner: a Ray Train loop around a DeepSpeed engine.

Every rank runs `train_loop`. It restores the newest checkpoint, tells the coordinator which version it holds, and then
turns experience into updates: forward and backward passes over its share, one optimiser step, new weights out.
"""

import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train

from rayjobs.options import JobOptions
from rayjobs.runtime import checkpoints
from rayjobs.runtime.experience import Share
from rayjobs.runtime.ranks import Ranks
from rayjobs.runtime.state import DISK, NOT_FINITE, SOUND, Stop, last_line

if TYPE_CHECKING:
    import torch

    from sharpening.ema import WeightAverage
    from sharpening.methods.base import Experience

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnerSpec:
    """What a learner rank is told.

    Attributes:
        options: The run's options.
        pipeline: Pipeline folder.
        deepspeed: DeepSpeed's configuration, resolved.
        device: `cpu` or `cuda`.
        checkpoints: The run's checkpoint folder.
        resume: Checkpoint to start from; `None` for the pretrained model.
        coordinator: Handle of the coordinator.
        vae: Folder of the VAE that takes the place of the pipeline's own; `None` for that one.
    """

    options: JobOptions
    pipeline: str
    deepspeed: dict[str, Any]
    device: str
    checkpoints: str
    resume: str | None
    coordinator: Any
    vae: str | None = None


def train_loop(config: dict[str, Any]) -> None:
    """What Ray Train runs on every rank.

    Args:
        config: `spec`, a `LearnerSpec`.
    """
    learner = Learner(config["spec"])
    stop = learner.begin()
    while stop is None and learner.update < learner.spec.options.max_train_steps:
        stop = learner.make_update()
    if stop is not None and stop.kind in SOUND:
        learner.checkpoint()


class Learner:
    """One learner rank.

    Args:
        spec: What it is told.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        import torch

        from rayjobs.runtime.engine import build_engine

        context = ray.train.get_context()
        self.spec = spec
        self.ranks = Ranks(context.get_world_rank(), context.get_world_size(), spec.device)
        torch.set_num_threads(spec.options.learner_threads)
        torch.backends.cuda.matmul.allow_tf32 = spec.options.allow_tf32
        self._folder = Path(spec.checkpoints)
        self._module, self._engine = build_engine(spec)
        self.update = 0
        self._attempt = 0
        self._saved = -1  # update of the newest checkpoint
        self._published: dict[int, np.ndarray] = {}  # rank 0: what stale rollouts can still need
        self._round_state = b""  # what a method in rounds goes on with
        self._average: WeightAverage | None = None  # rank 0

    # -- starting ------------------------------------------------------------------------------------------------

    def begin(self) -> Stop | None:
        """Restore the newest checkpoint and tell the coordinator.

        Returns:
            Why the run need not go on, if so.
        """
        rows: list[dict[str, Any]] = []
        found = ray.train.get_checkpoint()
        path = Path(found.path) if found else Path(self.spec.resume) if self.spec.resume else None
        if path is not None:
            rows = self._restore(path)
        weights = self._weights(self.update) if self.update else None
        answer: tuple[int, Stop | None] | None = None
        if self.ranks.leads:
            if weights is not None:
                self._remember(self.update, weights)
            answer = ray.get(self.spec.coordinator.begin.remote(self.update, self._published, rows))
        self._attempt, stop = self.ranks.told(answer)
        return stop

    def _restore(self, path: Path) -> list[dict[str, Any]]:
        from rayjobs.runtime import weights
        from rayjobs.runtime.engine import load_state

        state, rows = checkpoints.read(path)
        load_state(self._engine, path)
        if self.ranks.leads:
            self._average = checkpoints.average(path, self.spec.options.ema_decay)
            self._published = {v: weights.read(path / f"version-{v:06d}.safetensors") for v in state.versions}
        self.update = self._saved = state.update
        self._round_state = checkpoints.round_state(path)
        if self._round_state:
            self._module.method.take(self._round_state)  # type: ignore[attr-defined]
        return rows

    # -- one update ----------------------------------------------------------------------------------------------

    def make_update(self) -> Stop | None:
        """Make one update; publish its weights; checkpoint when it is time.

        Returns:
            Why the run cannot go on, if so. Every rank gets the same answer.
        """
        started = time.perf_counter()
        stopped = self._begin_round()
        if stopped is not None:
            return stopped
        experience = self._experience()
        if isinstance(experience, Stop):
            return experience
        waited = time.perf_counter()
        row = self._learn(experience)
        learnt = time.perf_counter()
        if isinstance(row, Stop):
            if self.ranks.leads:
                ray.get(self.spec.coordinator.stop.remote(row.kind, row.reason))
            return row
        weights = self._weights(self.update + 1)
        stop: Stop | None = None
        if self.ranks.leads:
            row |= {
                "seconds_wait": waited - started,
                "seconds_learn": learnt - waited,
                "seconds_publish": time.perf_counter() - learnt,
            }
            self._remember(self.update + 1, weights)
            finished = self.spec.coordinator.finish.remote(self._attempt, self.update, row, weights)
            stop = ray.get(finished)
        self.update += 1
        answer: Stop | None = self.ranks.told(stop)
        if answer is None and self._due():
            answer = self.checkpoint()
        return answer

    def _begin_round(self) -> Stop | None:
        """Where a round of the method begins with this update, go on with what an actor makes of the newest weights."""
        from sharpening.methods.rounds import InRounds, round_slots

        method = self._module.method
        slots = round_slots(method, self.update, self.spec.options.max_train_steps)
        if not slots:
            return None
        asked = self.spec.coordinator.begin_round.remote(self._attempt, self.update, slots, self._round_state)
        state: bytes | Stop = ray.get(asked)
        if isinstance(state, Stop):
            return state
        assert isinstance(method, InRounds)
        self._round_state = state
        method.take(state)
        return None

    def _experience(self) -> "Experience | Stop":
        """This rank's share of the update; what was lost with a node is made again, and all ranks wait for it."""
        while True:
            asked = self.spec.coordinator.next.remote(self._attempt, self.update, self.ranks.rank, self.ranks.world)
            shares: list[Share] | Stop = ray.get(asked)
            if isinstance(shares, Stop):
                return shares
            experience, lost = self._fetch(shares)
            if lost:
                ray.get(self.spec.coordinator.lost.remote(self._attempt, self.update, lost))
            if self.ranks.all(experience is not None):
                assert experience is not None
                return experience

    def _fetch(self, shares: list[Share]) -> "tuple[Experience | None, list[Any]]":
        """This rank's groups, in task order; `None` and the references of those whose node is gone, where there are."""
        from sharpening.methods.base import Experience

        picked, lost = [], []
        for share in shares:
            try:
                part = ray.get(share.experience)
            except ray.exceptions.ObjectLostError as error:
                logger.info("experience was lost", exc_info=error)
                lost.append(share.experience)
                continue
            whole = (share.first, share.last) == (0, part.groups)
            picked.append(part if whole else part.select(range(share.first, share.last)))
        return (None if lost else Experience.cat(picked)), lost

    def _learn(self, experience: "Experience") -> dict[str, Any] | Stop:
        """Learn from the share, in `inner_steps` optimiser steps; a stop when something is not finite."""
        from rayjobs.runtime.engine import memory
        from sharpening.learning_rate import learning_rate_at
        from sharpening.updates import inner_parts, mean_metrics

        options, module, engine = self.spec.options, self._module, self._engine
        rate = learning_rate_at(self.update, options.training_options())
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        nfe = module.policy.nfe
        steps: list[dict[str, float]] = []
        for part in inner_parts(experience, options.inner_steps):
            metrics = self._step(part)
            if isinstance(metrics, Stop):
                return metrics
            steps.append(metrics)
        own = {"learning_rate": rate, "nfe_learn": self.ranks.sum(module.policy.nfe - nfe)}
        return mean_metrics((metrics, 1.0) for metrics in steps) | own | memory(self.spec.device)

    def _step(self, experience: "Experience") -> dict[str, float] | Stop:
        """One optimiser step: equal passes over the experience, then the step itself."""
        from rayjobs.runtime.engine import apply_gradients
        from sharpening.updates import mean_metrics, micro_batches

        module, engine = self._module, self._engine
        collected, finite = [], True
        batches = micro_batches(experience, self.spec.options.train_batch_size)
        for index, (part, weight) in enumerate(batches):
            loss = engine(part)
            finite = finite and math.isfinite(loss.item())
            collected.append((dict(module.metrics), weight))
            # Equal passes: DeepSpeed's division by their number is the mean over the step's groups.
            engine.backward(loss)
            if index < len(batches) - 1:
                engine.step()  # only counts the pass
        if not self.ranks.all(finite):
            return Stop(NOT_FINITE, f"the loss of update {self.update} is not finite; {REMEDY}")
        metrics = self.ranks.mean(mean_metrics(collected))
        grad_norm = apply_gradients(engine)
        if not self.ranks.all(math.isfinite(grad_norm)):
            return Stop(NOT_FINITE, f"the gradient of update {self.update} is not finite; {REMEDY}")
        return metrics | {"grad_norm": grad_norm}

    # -- weights and checkpoints ---------------------------------------------------------------------------------

    def _weights(self, made: int) -> np.ndarray:
        """The weights after so many updates, packed, on rank 0; the others only take part in gathering them.

        With an average, the last version is that: no rollout needs it, and what is evaluated and saved is the newest.
        """
        from rayjobs.runtime.engine import whole_weights
        from rayjobs.runtime.weights import pack

        with whole_weights(self._engine):
            state = self._module.policy.trainable_state() if self.ranks.leads else {}
        if not self.ranks.leads:
            return np.empty(0, np.uint8)
        if self.spec.options.use_ema:
            average = self._averaged(made, state)
            state = average.state() if made == self.spec.options.max_train_steps else state
        return pack(state)

    def _averaged(self, made: int, state: "dict[str, torch.Tensor]") -> "WeightAverage":
        """The average of the weights after so many updates; a restored one has taken them in already."""
        from sharpening.ema import WeightAverage

        if self._average is None:
            self._average = WeightAverage(state, self.spec.options.ema_decay)
        if self._average.steps < made:
            self._average.step(state)
        return self._average

    def _remember(self, version: int, weights: np.ndarray) -> None:
        """Keep what rollouts after a restart need besides the engine's own state: the versions they lag behind."""
        lag = self.spec.options.staleness
        self._published[version] = weights
        self._published = {v: w for v, w in self._published.items() if version - lag <= v <= version}

    def _due(self) -> bool:
        options = self.spec.options
        return self.update % options.checkpointing_steps == 0 or self.update == options.max_train_steps

    def checkpoint(self) -> Stop | None:
        """Write a checkpoint that holds everything, and drop old ones.

        All ranks write into one folder on the run's storage, which is renamed once it is whole: Ray Train's upload
        from temporary folders would write every byte twice.

        Returns:
            A stop when the disk refused; the checkpoints before are intact.

        Raises:
            Exception: With several ranks, whatever the disk refused with: Ray Train then ends the other ranks.
        """
        from rayjobs.runtime.engine import save_state

        if self.update in (self._saved, 0):
            return None
        partial = checkpoints.partial_for(self._folder, self.update)
        try:
            if self.ranks.leads:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.ranks.all(True)
            save_state(self._engine, partial, self.update)
            if self.ranks.leads:
                checkpoints.keep_average(partial, self._average)
                self._write_versions(partial)
                checkpoints.keep_round(partial, self._round_state)
            self.ranks.all(True)
            if self.ranks.leads:
                rows = ray.get(self.spec.coordinator.rows.remote())
                state = checkpoints.TrainerState(self.update, self.ranks.world, self._stale_versions())
                checkpoints.complete(self._folder, state, rows)
            self.ranks.all(True)
            path = checkpoints.path_for(self._folder, self.update)
            ray.train.report(
                {"update": self.update},
                checkpoint=ray.train.Checkpoint.from_directory(str(path)),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            )
            self._saved = self.update
            if self.ranks.leads:
                checkpoints.prune(self._folder, self.spec.options.checkpoints_total_limit)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = f"checkpoint {self.update} could not be written to {self._folder}: {_disk_reason(error)}"
            ray.get(self.spec.coordinator.stop.remote(DISK, reason))
            if self.ranks.world > 1:
                raise
            return Stop(DISK, reason)
        return None

    def _stale_versions(self) -> list[int]:
        """Versions that a restart needs besides the engine's own weights."""
        return sorted(version for version in self._published if 0 < version < self.update)

    def _write_versions(self, folder: Path) -> None:
        from rayjobs.runtime import weights

        for version in self._stale_versions():
            weights.write(self._published[version], folder / f"version-{version:06d}.safetensors")


REMEDY = "lower --learning_rate, or --beta where the method has one"


def _disk_reason(error: Exception) -> str:
    """What a disk refused with."""
    return error.strerror if isinstance(error, OSError) and error.strerror else last_line(error)
