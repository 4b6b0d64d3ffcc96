"""The DeepSpeed engine on one rank, in this process: the arithmetic of the plain loop, at every ZeRO stage."""

import copy
import gc
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from diffusers import AutoencoderKL
from torch._dynamo.testing import CompileCounterWithBackend

from rayjobs.deepspeed_config import default_config_path, load_deepspeed, resolve_deepspeed
from rayjobs.options import RLHFOptions
from rayjobs.runtime.engine import apply_gradients, build_engine, load_state, save_state, whole_weights
from rayjobs.runtime.evaluation import EvaluationTask
from rayjobs.runtime.experience import RolloutTask
from rayjobs.runtime.launch import rollout_spec
from rayjobs.runtime.learner import LearnerSpec
from rayjobs.runtime.rollout import RolloutActor
from sharpening.data.source import Batch, PromptSource
from sharpening.loop import learn
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import TrainingOptions
from sharpening.policies import load_policy
from sharpening.prepare import prepare
from sharpening.shapes.benchmark import BenchmarkPrompt
from sharpening.updates import micro_batches
from tests.compiling import graphs
from tests.listening import free_port

__all__ = ["graphs"]  # a fixture


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A process group of one, and no C++ compiler in sight. Yields where DeepSpeed would build its operators."""
    builds = tmp_path_factory.mktemp("extensions")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("no-compiler")))
        patch.delenv("CXX", raising=False)
        patch.setenv("TORCH_EXTENSIONS_DIR", str(builds))
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1",
                            "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}.items():  # fmt: skip
            patch.setenv(name, value)
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        yield builds
        torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def options(**changes: Any) -> RLHFOptions:
    return RLHFOptions(
        branches=2, timesteps_per_rollout=2, rollout_steps=4, prompts_per_update=4, rollout_batch_size=4,
        train_batch_size=4, learning_rate=1e-3, max_grad_norm=0.1, lr_warmup_steps=0, lr_scheduler="constant",
        **changes,
    )  # fmt: skip


def spec(pipeline: Path, stage: int, offload: tuple[str, ...] = (), **changes: Any) -> LearnerSpec:
    config, chosen = load_deepspeed(default_config_path("cpu")), options(**changes)
    config["zero_optimization"] = {"stage": stage, "reduce_bucket_size": "auto", "overlap_comm": "auto"}
    if stage == 3:  # every parameter of the small model lies under what DeepSpeed leaves whole by itself
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    for what in offload:
        config["zero_optimization"][f"offload_{what}"] = {"device": "cpu", "pin_memory": "auto"}
    return LearnerSpec(chosen, str(pipeline), resolve_deepspeed(config, chosen), "cpu", "", None, None)


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


LORA = {"rank": 4, "lora_alpha": 8.0, "lora_target_modules": ("to_q", "to_out.0")}  # few layers: ZeRO 3 minds each


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        *((stage, {}) for stage in range(4)),
        *((stage, LORA) for stage in range(3)),
        (2, {"offload": ("optimizer",)}),
        (3, {"offload": ("param",)}),
        (3, LORA | {"offload": ("param", "optimizer")}),
        (1, LORA | {"torch_compile": True}),
        (2, {"gradient_checkpointing": True}),
        (3, LORA | {"gradient_checkpointing": True}),
    ],
    ids=[
        "0", "1", "2", "3", "0-lora", "1-lora", "2-lora", "2-offload", "3-offload-param", "3-lora-offload-both",
        "1-lora-compiled", "2-checkpointing", "3-lora-checkpointing",
    ],
)  # fmt: skip
def test_the_engine_does_what_the_plain_loop_does(
    pipeline_folder: Path, brightness: Any, graphs: CompileCounterWithBackend, stage: int, changes: dict[str, Any]
) -> None:
    experiences = [roll_out(pipeline_folder, brightness, update) for update in range(2)]
    adapters = {name: value for name, value in changes.items() if name in LORA}
    training = TrainingOptions(
        prompts_per_update=4, train_batch_size=4, learning_rate=1e-3, max_grad_norm=0.1, lr_warmup_steps=0,
        lr_scheduler="constant", **adapters,
    )  # fmt: skip
    policy, method = load_policy(pipeline_folder), RLHFSharpening(options().method_options())
    prepare(policy, training, learns=True)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    module, engine = build_engine(spec(pipeline_folder, stage, **changes))
    before = weights(module, engine)
    assert all((".lora_" in name) == bool(adapters) for name in before)
    for experience in experiences:
        expected = learn(policy, method, experience, optimizer, training)
        losses, grad_norm = step(module, engine, experience)
        assert sum(losses) / len(losses) == pytest.approx(expected["loss"], rel=1e-5)
        assert grad_norm == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert grad_norm > 0.1  # so that clipping is part of the comparison
    assert (graphs.frame_count > 0) == ("torch_compile" in changes)
    after, wanted = weights(module, engine), policy.trainable_state()
    assert after.keys() == wanted.keys()
    moved = max(float((after[name] - before[name]).abs().max()) for name in after)
    apart = max(float((after[name] - wanted[name]).abs().max()) for name in after)
    assert moved > 5e-4
    assert apart < 0.02 * moved


@pytest.mark.parametrize(("stage", "adapters"), [(1, {}), (3, {}), (1, LORA), (3, LORA)], ids=str)
def test_a_checkpoint_continues_bit_for_bit(
    pipeline_folder: Path, brightness: Any, tmp_path: Path, stage: int, adapters: dict[str, Any]
) -> None:
    first, second = (roll_out(pipeline_folder, brightness, update) for update in range(2))
    module, engine = build_engine(spec(pipeline_folder, stage, **adapters))
    step(module, engine, first)
    save_state(engine, tmp_path, 1)
    expected = step(module, engine, second)
    final = weights(module, engine)
    module, engine = build_engine(spec(pipeline_folder, stage, **adapters))
    load_state(engine, tmp_path)
    assert step(module, engine, copy.deepcopy(second)) == expected
    found = weights(module, engine)
    assert all(torch.equal(found[name], final[name]) for name in final)
    if adapters:  # the frozen weights are the pretrained model's, and need no copy in every checkpoint
        written = sum(file.stat().st_size for file in tmp_path.rglob("*.pt"))
        assert written < (pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size


class AdamW8bit(torch.optim.AdamW):
    """Takes what bitsandbytes' optimiser of that name takes, keeps float32 moments, and counts its steps."""

    steps = 0

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, optim_bits: int = 32, args: Any = None,
        min_8bit_size: int = 4096, is_paged: bool = False,
    ) -> None:  # fmt: skip
        assert (amsgrad, optim_bits, args, min_8bit_size, is_paged) == (False, 32, None, 4096, False)
        super().__init__(params, lr, betas, eps, weight_decay)

    def step(self, closure: Any = None) -> Any:
        type(self).steps += 1
        return super().step(closure)


@pytest.mark.parametrize("stage", [0, 2])
def test_bitsandbytes_optimiser_is_the_one_that_is_stepped_and_continues(
    pipeline_folder: Path, brightness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """How DeepSpeed is given the optimiser, steps, saves and loads it.

    bitsandbytes needs a GPU, so a stand-in with its signature takes its place here; what its own kernels do to the
    moments is not tested.
    """
    first, second = (roll_out(pipeline_folder, brightness, update) for update in range(2))
    module, engine = build_engine(spec(pipeline_folder, stage))
    wanted = [step(module, engine, first), step(module, engine, second)]
    exact = weights(module, engine)
    library = ModuleType("bitsandbytes")
    monkeypatch.setattr(library, "optim", SimpleNamespace(AdamW8bit=AdamW8bit), raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setattr(AdamW8bit, "steps", 0)
    module, engine = build_engine(spec(pipeline_folder, stage, use_8bit_adam=True))
    found = [step(module, engine, first)]
    save_state(engine, tmp_path, 1)
    found.append(step(module, engine, second))
    assert AdamW8bit.steps == 2
    for (losses, norm), (expected, expected_norm) in zip(found, wanted, strict=True):
        assert losses == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
    final = weights(module, engine)
    assert all(torch.allclose(final[name], value, atol=2e-5) for name, value in exact.items())
    module, engine = build_engine(spec(pipeline_folder, stage, use_8bit_adam=True))
    load_state(engine, tmp_path)
    assert step(module, engine, copy.deepcopy(second)) == found[1]
    assert AdamW8bit.steps == 3
    continued = weights(module, engine)
    assert all(torch.equal(continued[name], value) for name, value in final.items())


@pytest.mark.parametrize(("stage", "adapters"), [(0, {}), (1, {}), (2, LORA)], ids=str)
def test_bf16_learns_about_the_same_from_float32_master_weights(
    pipeline_folder: Path, brightness: Any, stage: int, adapters: dict[str, Any]
) -> None:
    method = RLHFSharpening(options().method_options())
    policy = load_policy(pipeline_folder, dtype=torch.bfloat16)  # as a rollout actor holds it
    prepare(policy, TrainingOptions(**adapters), learns=False)
    seeds, prompts = Seeds(0, 0, (0, 1, 2, 3)), ["a red circle", "a blue cross", "a green square", "a red cross"]
    experience = method.collect(policy, policy.frozen_copy(), brightness, Batch.of_prompts(prompts), seeds)
    module, engine = build_engine(spec(pipeline_folder, stage, mixed_precision="bf16", **adapters))
    exact, exact_engine = build_engine(spec(pipeline_folder, 1, **adapters))
    assert {p.dtype for p in module.denoiser.parameters()} == {torch.bfloat16}
    before = weights(module, engine)
    losses, norm = step(module, engine, experience)
    # It starts at the very weights of the reference, so that no rounding stands between the two.
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert norm == pytest.approx(step(exact, exact_engine, experience)[1], rel=0.05)
    for _ in range(2):
        losses, norm = step(module, engine, experience)
        assert losses == pytest.approx(step(exact, exact_engine, experience)[0], rel=0.1)
        assert math.isfinite(norm)
    after = weights(module, engine)
    assert all(value.dtype == torch.bfloat16 and value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)
    if stage == 0:  # DeepSpeed tells no master weights then
        return
    masters = [safe_get_full_fp32_param(p) for p in module.denoiser.parameters() if p.requires_grad]
    assert {value.dtype for value in masters} == {torch.float32}
    # Steps of 1e-3 are below bf16's resolution of weights near 1; what is kept in float32 is finer.
    assert any(not torch.equal(value, value.bfloat16().float()) for value in masters)


def test_deepspeed_may_be_told_to_turn_the_collector_off(pipeline_folder: Path) -> None:
    told = spec(pipeline_folder, 1)
    _, engine = build_engine(replace(told, deepspeed=told.deepspeed | {"disable_python_gc": True}))
    try:
        assert not gc.isenabled()
    finally:
        engine.destroy()
    assert gc.isenabled()


def test_another_resolution_and_vae_are_those_of_learner_actors_held_out_images_and_the_saved_pipeline(
    pipeline_folder: Path, brightness: Any, tmp_path: Path
) -> None:
    vae = AutoencoderKL.from_pretrained(pipeline_folder / "vae")
    vae.register_to_config(scaling_factor=0.25)
    vae.save_pretrained(tmp_path / "vae")
    chosen = options(
        resolution=96, pretrained_model_name_or_path=str(pipeline_folder),
        pretrained_vae_model_name_or_path=str(tmp_path / "vae"),
    )  # fmt: skip
    actor = RolloutActor("actor", rollout_spec(chosen, "cpu", brightness, {}))
    actor._source = PromptSource(["a red circle", "a blue cross", "a green square", "a red cross"])
    experience, _ = actor.rollout(RolloutTask(0, 0, 0, (0, 1, 2, 3), (0, 1, 2, 3)), 0, None, [])
    assert experience is not None
    assert experience.x_t.shape[-3:] == (8, 12, 12)
    assert experience.condition.time_ids.tolist() == [[96, 96, 0, 0, 96, 96]] * 4
    prompt = BenchmarkPrompt("a red circle", "colour", ())
    part = actor.evaluate(EvaluationTask((0,), (prompt,), 1.0, 2, False, frozenset({0})), 0, None)
    assert part.images[0].shape == (96, 96, 3)
    assert {model.vae.config.scaling_factor for model in (actor._policy, actor._judged, actor._reference)} == {0.25}
    actor.save(str(tmp_path / "saved"), 0, None)
    assert AutoencoderKL.from_pretrained(tmp_path / "saved" / "vae").config.scaling_factor == 0.25
    told = replace(spec(pipeline_folder, 1, resolution=96), vae=str(tmp_path / "vae"))
    module, engine = build_engine(told)
    assert module.policy.vae.config.scaling_factor == 0.25
    assert module.policy.latent_shape == (8, 12, 12)
    losses, _ = step(module, engine, experience)
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-5)


def test_nothing_was_compiled(one_rank: Path) -> None:
    assert os.listdir(one_rank) == []
