"""The rollout actor: a policy snapshot, the frozen reference and a reward; prompts in, experience out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING, Handler, LogRecord, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from rayjobs.runtime.evaluation import JUDGE, EvaluationPart, EvaluationTask
from rayjobs.runtime.experience import RolloutTask, RoundTask, Summary
from sharpening.evaluation.cost import peak_rss
from sharpening.options import TrainingOptions
from sharpening.startup import loading

if TYPE_CHECKING:
    from rayjobs.runtime.ranked import RankTask
    from sharpening.data.reading import Reading
    from sharpening.data.source import Source
    from sharpening.methods.base import Experience
    from sharpening.methods.ranking import RankedPairs
    from sharpening.methods.rounds import Round
    from sharpening.options import MethodOptions
    from sharpening.rewards.base import ScoreFn
    from sharpening.rewards.statistics import Statistics


@dataclass(frozen=True)
class RolloutSpec:
    """What a rollout actor is told.

    Attributes:
        pipeline: Pipeline folder.
        device: `cpu` or `cuda`.
        dtype: Name of the weights' torch dtype.
        threads: torch threads. The same for every actor, because the number of threads decides low bits.
        allow_tf32: Whether matrix products may use TF32.
        method: Name of the method.
        options: Options of the method.
        run_seed: The run's seed.
        score: The reward, pickled as what makes it (a Serve client with no connection yet).
        watched: Rewards that are only asked about held-out prompts, by name.
        training: What training makes of the model: adapters, compilation.
        tiny_vae: Folder of the VAE that decodes what rewards judge in training; `None` for the model's own.
        resolution: Width and height of images in pixels; `None` for the model's own.
        vae: Folder of the VAE that takes the place of the pipeline's own; `None` for that one.
    """

    pipeline: str
    device: str
    dtype: str
    threads: int
    allow_tf32: bool
    method: str
    options: "MethodOptions"
    run_seed: int
    score: "ScoreFn"
    watched: "dict[str, ScoreFn]" = field(default_factory=dict)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    tiny_vae: str | None = None
    resolution: int | None = None
    vae: str | None = None


class RolloutActor:
    """Turns prompts into scored, selected branches; holds the policy and the reference.

    A restarted actor begins like a new one, with the pretrained weights (version 0). Every call brings the version
    it is to be made with, so that a restart cannot mix versions up.

    Args:
        name: For logs and errors.
        spec: What it is told.
    """

    @loading()
    def __init__(self, name: str, spec: RolloutSpec) -> None:
        import torch

        from rayjobs.runtime.models import pipeline_folder
        from sharpening.methods import load_method
        from sharpening.policies import load_policy
        from sharpening.policies.latent import LatentPolicy
        from sharpening.prepare import prepare
        from sharpening.rewards.combined import Panel

        torch.set_num_threads(spec.threads)
        torch.backends.cuda.matmul.allow_tf32 = spec.allow_tf32
        self._name, self._spec = name, spec
        dtype = getattr(torch, spec.dtype)
        policy = load_policy(pipeline_folder(spec.pipeline), spec.device, dtype, spec.resolution, spec.vae)
        assert isinstance(policy, LatentPolicy)
        prepare(policy, spec.training, learns=False)
        policy.denoiser.requires_grad_(False)
        self._judged = policy  # draws held-out images and those of pairs, always with the model's own VAE
        self._policy = policy.decode_with(spec.tiny_vae)
        self._reference = self._policy.frozen_copy()
        self._method = load_method(spec.method, spec.options)
        self._source: Source | None = None
        self._score = spec.score
        self._panel = Panel({JUDGE: spec.score, **spec.watched})
        self._notes = _Notes()
        self._version = 0

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and dashboard."""
        return self._name

    def describe(self) -> dict[str, Any]:
        """Who answers.

        Returns:
            `name`, `pid`, `version` of the weights it holds.
        """
        return {"name": self._name, "pid": os.getpid(), "version": self._version}

    def rollout(
        self,
        task: RolloutTask,
        version: int,
        weights: np.ndarray | None,
        source: list[Any],
        statistics: "Statistics | None" = None,
    ) -> "tuple[Experience | None, Summary]":
        """Roll a micro-batch of examples out.

        Args:
            task: The examples.
            version: Weights to use.
            weights: Those weights, packed; `None` for the pretrained model's.
            source: The training examples, one reference: read once, however long a list of prompts is.
            statistics: What several rewards are standardised by; `None` or empty: the task by itself.

        Returns:
            The experience (`None` when every prompt was dropped) and its summary, as two objects: only the small one
            is read on the way.

        Raises:
            RewardUnavailable: If the reward stays down.
        """  # noqa: DOC502
        from sharpening.methods.base import Seeds
        from sharpening.policies.prompt_length import overlong
        from sharpening.rewards.combined import scaled, seen_by

        self._use(version, weights)
        score = scaled(self._score, statistics or {})
        reference_nfe = self._reference.nfe
        reading = self._read(source, task)
        batch = reading.batch
        seeds = Seeds(self._spec.run_seed, task.update, task.slots)
        found = self._method.collect(self._policy, self._reference, score, batch, seeds)
        experience = replace(found, version=version)
        summary = Summary(
            kept=len(experience.prompts),
            groups=experience.groups,
            dropped=list(experience.dropped),
            path_rewards=experience.path_rewards.numpy(),
            statistics={name: values.numpy() for name, values in experience.statistics().items()},
            seconds=dict(experience.seconds),
            nfe=self._stages(experience.nfe, self._reference.nfe - reference_nfe),
            images_scored=experience.images_scored,
            peak_memory=peak_rss(),
            peak_gpu_memory=self._peak_gpu_memory(),
            notes=[f"{self._name}: {note}" for note in self._notes.take()],
            scored=seen_by(score),
            skipped=reading.skipped,
            truncated=overlong(self._policy, batch.prompts),
        )
        return (experience if summary.kept else None), summary

    def evaluate(self, task: EvaluationTask, version: int, weights: np.ndarray | None) -> EvaluationPart:
        """Draw held-out prompts at fixed seeds, score and verify them.

        Args:
            task: Prompts, seeds, guidance.
            version: Weights to use.
            weights: Those weights, packed; `None` for the pretrained model's.

        Returns:
            Rewards, verified facts, and the images that sample grids want.

        Raises:
            RewardUnavailable: If the reward stays down.
        """  # noqa: DOC502
        from rayjobs.runtime.evaluation import draw

        self._use(version, weights)
        part = draw(self._judged, self._method, self._panel, task, self._spec.run_seed)
        return replace(part, version=version)

    def begin_round(self, task: RoundTask, version: int, weights: np.ndarray | None) -> "Round":
        """Make the state that a method goes on with.

        Args:
            task: The round's examples and the state before.
            version: Weights to use.
            weights: Those weights, packed; `None` for the pretrained model's.

        Returns:
            The state, and what it cost.

        Raises:
            RewardUnavailable: If the reward stays down.
        """  # noqa: DOC502
        from sharpening.methods.base import Seeds
        from sharpening.methods.rounds import InRounds
        from sharpening.rewards.combined import scaled

        assert isinstance(self._method, InRounds)
        self._use(version, weights)
        batch = self._read(task.source, task).batch
        seeds = Seeds(self._spec.run_seed, task.update, task.slots)
        score = scaled(self._score, task.statistics)
        return self._method.begin_round(self._policy, self._reference, score, batch, seeds, task.state)

    def rank(self, task: "RankTask", version: int, weights: np.ndarray | None) -> "RankedPairs":
        """Draw images of prompts, score them, keep each prompt's best and worst.

        Args:
            task: The prompts.
            version: Weights to use.
            weights: Those weights, packed; `None` for the pretrained model's.

        Returns:
            The pairs.

        Raises:
            RewardUnavailable: If the reward stays down.
        """  # noqa: DOC502
        from sharpening.methods.base import Seeds
        from sharpening.methods.ranking import rank_pairs

        self._use(version, weights)
        seeds = Seeds(self._spec.run_seed, 0, task.items)
        return rank_pairs(self._judged, self._score, task.prompts, seeds, task.samples, self._method.options)

    def save(self, folder: str, version: int, weights: np.ndarray | None) -> str:
        """Write the whole pipeline with some version's weights, and beside its folder the adapters, if any.

        Args:
            folder: Where to; replaced as a whole once everything is written.
            version: Weights to use.
            weights: Those weights, packed; `None` for the pretrained model's.

        Returns:
            The folder.
        """
        import shutil

        self._use(version, weights)
        target, partial = Path(folder), Path(f"{folder}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._policy.save_pretrained(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        if self._policy.adapted:
            self._policy.save_adapter(target.parent)
        return folder

    def _read(self, source: list[Any], task: RolloutTask | RoundTask) -> "Reading":
        """A task's examples; the source is fetched once."""
        from sharpening.data.reading import read

        if self._source is None:
            self._source = ray.get(source[0])
        assert self._source is not None
        return read(self._source, task.items, self._spec.run_seed, task.update, task.slots)

    def _use(self, version: int, weights: np.ndarray | None) -> None:
        """Hold the weights of a version."""
        from rayjobs.runtime.weights import unpack

        if version == self._version:
            return
        # Version 0 is what the reference holds.
        state = self._reference.trainable_state() if weights is None else unpack(weights)
        self._policy.load_trainable_state(state)
        self._version = version

    def _stages(self, total: int, reference: int) -> dict[str, int]:
        """Network evaluations of a rollout by model."""
        return {"rollout": total - reference, "reference": reference}

    def _peak_gpu_memory(self) -> int:
        """Peak bytes of the GPU, 0 on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() if self._spec.device == "cuda" else 0


class _Notes(Handler):
    """Keeps what the reward's client warns of (a replica died, it answers again), for the run's log."""

    def __init__(self) -> None:
        super().__init__(WARNING)
        self._kept: list[str] = []
        getLogger("reward_servers").addHandler(self)

    def emit(self, record: LogRecord) -> None:
        """Keep a record."""
        self._kept.append(record.getMessage())

    def take(self) -> list[str]:
        """What was kept since the last time."""
        kept, self._kept = self._kept, []
        return kept


def names(run: str, count: int) -> Sequence[str]:
    """Names of a run's rollout actors, as the dashboard shows them.

    Args:
        run: The run's name.
        count: How many.

    Returns:
        `sharpening/<run>/rollout-<i>`.
    """
    return [f"sharpening/{run}/rollout-{index}" for index in range(count)]
