"""One of two learner ranks of a run without Ray: `python -m tests.two_ranks PIPELINE FOLDER RANK PORT`.

Both ranks make the same rollouts from the newest weights, as `train_in_process` makes them, and learn from their own
half of each update with the job's learner over gloo. Only Ray is missing: which rank it is comes from torch.
"""

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from rayjobs.deepspeed_config import default_config_path, load_deepspeed, resolve_deepspeed
from rayjobs.options import JobOptions, RLHFOptions
from rayjobs.runtime.learner import Learner, LearnerSpec
from rayjobs.runtime.weights import unpack
from sharpening.data.prompts import Stream
from sharpening.data.source import PromptSource
from sharpening.loop import _collect
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.policies import load_policy
from tests.own_rewards import Brightness
from tests.runs import PROMPTS

STAGES = (1, 2, 3)
RANKS = 2


def options() -> JobOptions:
    """What both ranks are told: four prompts at two timesteps, of which a rank learns in two passes of two."""
    return RLHFOptions(
        branches=2, timesteps_per_rollout=2, rollout_steps=4, prompts_per_update=4, rollout_batch_size=2,
        train_batch_size=2, num_learners=RANKS, learner_threads=1, learning_rate=1e-3, max_grad_norm=0.1,
        max_train_steps=3, lr_warmup_steps=2, lr_scheduler="constant_with_warmup",
    )  # fmt: skip


def learn(pipeline: str, stage: int) -> tuple[list[dict[str, Any]], Mapping[str, torch.Tensor]]:
    """All updates at one ZeRO stage.

    Args:
        pipeline: Pipeline folder.
        stage: ZeRO's stage.

    Returns:
        What the learner tells of each update, and the whole weights at the end (rank 0's).
    """
    chosen = options()
    # ZeRO 3 leaves parameters whole that are smaller than a threshold, which is every one of so small a model.
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    config = load_deepspeed(default_config_path("cpu")) | {"zero_optimization": zero}
    learner = Learner(LearnerSpec(chosen, pipeline, resolve_deepspeed(config, chosen), "cpu", "", None, None))
    policy, source = load_policy(pipeline), PromptSource(PROMPTS)
    reference, method = policy.frozen_copy(), RLHFSharpening(chosen.method_options())
    stream, training = Stream(len(source), chosen.seed, chosen.prompts_per_update), chosen.training_options()
    rows = []
    for update in range(chosen.max_train_steps):
        whole, _, _ = _collect(policy, reference, method, Brightness(), {}, source, stream, training, update)
        share = whole.groups // RANKS
        row = learner._learn(whole.select(range(learner.ranks.rank * share, (learner.ranks.rank + 1) * share)))
        assert isinstance(row, dict), row
        rows.append(row)
        learner.update += 1
        newest = [learner._weights(learner.update)]  # on rank 0 alone
        dist.broadcast_object_list(newest, src=0)
        policy.load_trainable_state(unpack(newest[0]))
    return rows, policy.trainable_state()


def main(pipeline: str, folder: str, rank: str, port: str) -> None:
    """Every stage, one after the other.

    Args:
        pipeline: Pipeline folder.
        folder: Where rank 0 leaves `zero<stage>.pt`.
        rank: This rank.
        port: Where rank 0 listens.
    """
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, timedelta(minutes=10), world_size=RANKS, rank=int(rank))
    context = SimpleNamespace(get_world_rank=dist.get_rank, get_world_size=dist.get_world_size)
    ray.train.get_context = lambda: context  # type: ignore[assignment, return-value]
    for stage in STAGES:
        rows, weights = learn(pipeline, stage)
        if rank == "0":
            torch.save((rows, weights), Path(folder) / f"zero{stage}.pt")
    dist.destroy_process_group()
    assert "torch._inductor.graph" not in sys.modules, "nothing is compiled, and yet the compiler was imported"


if __name__ == "__main__":
    main(*sys.argv[1:])
