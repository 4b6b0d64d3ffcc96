"""The DeepSpeed engine on one rank, in this process: the arithmetic of the plain loop, at every ZeRO stage."""

import copy
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayjobs.deepspeed_config import default_config_path, load_deepspeed, resolve_deepspeed
from rayjobs.options import RLHFOptions
from rayjobs.runtime.engine import apply_gradients, build_engine, whole_weights
from rayjobs.runtime.learner import LearnerSpec
from sharpening.data.source import Batch
from sharpening.loop import learn
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import TrainingOptions
from sharpening.policies import load_policy
from sharpening.updates import micro_batches


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A process group of one, and no C++ compiler in sight. Yields where DeepSpeed would build its operators."""
    builds = tmp_path_factory.mktemp("extensions")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("no-compiler")))
        patch.delenv("CXX", raising=False)
        patch.setenv("TORCH_EXTENSIONS_DIR", str(builds))
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1",
                            "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}.items():  # fmt: skip
            patch.setenv(name, value)
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        yield builds
        torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def options() -> RLHFOptions:
    return RLHFOptions(
        branches=2, timesteps_per_rollout=2, rollout_steps=4, prompts_per_update=4, rollout_batch_size=4,
        train_batch_size=4, learning_rate=1e-3, max_grad_norm=0.1, lr_warmup_steps=0, lr_scheduler="constant",
    )  # fmt: skip


def spec(pipeline: Path, stage: int) -> LearnerSpec:
    config = load_deepspeed(default_config_path("cpu"))
    config["zero_optimization"]["stage"] = stage
    return LearnerSpec(options(), str(pipeline), resolve_deepspeed(config, options()), "cpu", "", None, None)


def roll_out(pipeline: Path, brightness: Any, update: int) -> Experience:
    policy = load_policy(pipeline)
    seeds = Seeds(0, update, (0, 1, 2, 3))
    prompts = ["a red circle", "a blue cross", "a green square", "a red cross"]
    return RLHFSharpening(options().method_options()).collect(
        policy, policy.frozen_copy(), brightness, Batch.of_prompts(prompts), seeds
    )  # fmt: skip


def step(module: Any, engine: Any, experience: Experience) -> tuple[list[float], float]:
    losses = []
    for index, (part, _) in enumerate(micro_batches(experience, options().train_batch_size)):
        if index:
            engine.step()
        loss = engine(part)
        losses.append(loss.item())
        engine.backward(loss)
    return losses, apply_gradients(engine)


def weights(module: Any, engine: Any) -> dict[str, torch.Tensor]:
    with whole_weights(engine):
        return module.policy.trainable_state()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_engine_does_what_the_plain_loop_does(pipeline_folder: Path, brightness: Any, stage: int) -> None:
    experiences = [roll_out(pipeline_folder, brightness, update) for update in range(2)]
    training = TrainingOptions(
        prompts_per_update=4, train_batch_size=4, learning_rate=1e-3, max_grad_norm=0.1, lr_warmup_steps=0,
        lr_scheduler="constant",
    )  # fmt: skip
    policy, method = load_policy(pipeline_folder), RLHFSharpening(options().method_options())
    optimizer = torch.optim.AdamW(
        policy.denoiser.requires_grad_(True).parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0
    )
    module, engine = build_engine(spec(pipeline_folder, stage))
    before = weights(module, engine)
    for experience in experiences:
        expected = learn(policy, method, experience, optimizer, training)
        losses, grad_norm = step(module, engine, experience)
        assert sum(losses) / len(losses) == pytest.approx(expected["loss"], rel=1e-5)
        assert grad_norm == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert grad_norm > 0.1  # so that clipping is part of the comparison
    after, wanted = weights(module, engine), policy.trainable_state()
    assert after.keys() == wanted.keys()
    moved = max(float((after[name] - before[name]).abs().max()) for name in after)
    apart = max(float((after[name] - wanted[name]).abs().max()) for name in after)
    assert moved > 5e-4
    assert apart < 0.02 * moved


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_continues_bit_for_bit(pipeline_folder: Path, brightness: Any, tmp_path: Path, stage: int) -> None:
    first, second = (roll_out(pipeline_folder, brightness, update) for update in range(2))
    module, engine = build_engine(spec(pipeline_folder, stage))
    step(module, engine, first)
    engine.save_checkpoint(str(tmp_path), tag="engine")
    expected = step(module, engine, second)
    final = weights(module, engine)
    module, engine = build_engine(spec(pipeline_folder, stage))
    assert engine.load_checkpoint(str(tmp_path), tag="engine")[0] is not None
    assert step(module, engine, copy.deepcopy(second)) == expected
    found = weights(module, engine)
    assert all(torch.equal(found[name], final[name]) for name in final)


def test_nothing_was_compiled(one_rank: Path) -> None:
    assert os.listdir(one_rank) == []
