"""torch.compile on the denoiser: predictions and gradients are those of the model that is not compiled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from sharpening.options import TrainingOptions
from sharpening.policies import load_policy
from sharpening.policies.base import Policy
from sharpening.prepare import prepare
from tests import tiny_pipelines
from tests.compiling import graphs
from tests.tiny_pipelines import CHANNELS, SIDE

__all__ = ["graphs"]  # a fixture


def prepared(folder: Path, rank: int, compiled: bool) -> Policy:
    """A policy whose adapters, if any, change something."""
    policy = load_policy(folder)
    prepare(policy, TrainingOptions(rank=rank, torch_compile=compiled), learns=True)
    draw = torch.Generator().manual_seed(1)
    if rank:
        state = policy.trainable_state()
        policy.load_trainable_state({n: v + 0.2 * torch.randn(v.shape, generator=draw) for n, v in state.items()})
    return policy


def predicted(policy: Policy) -> torch.Tensor:
    x_t = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return policy.predict(x_t, policy.timesteps(4)[torch.tensor([0, 2])], policy.encode(["a red circle", ""])).eps


def test_a_compiled_model_predicts_and_learns_as_it_does_otherwise(
    tmp_path: Path, graphs: CompileCounterWithBackend
) -> None:
    """A transformer; capturing a UNet takes a minute, and `test_runtime_engine.py` trains one."""
    tiny_pipelines.build("pixart").save_pretrained(tmp_path)
    plain, compiled = (prepared(tmp_path, 4, value) for value in (False, True))
    reference = compiled.frozen_copy()
    with torch.no_grad():
        adapted, base = predicted(plain), predicted(plain.frozen_copy())
        assert (adapted - base).abs().max() > 1e-3
        assert graphs.frame_count == 0
        counts = []
        for model, expected in ((compiled, adapted), (reference, base), (compiled, adapted), (reference, base)):
            torch.testing.assert_close(predicted(model), expected, rtol=1e-4, atol=1e-5)
            counts.append(graphs.frame_count)
    assert 0 < counts[0] < counts[1]  # adapters off are other code
    assert counts[1] == counts[2] == counts[3]  # the switch goes back and forth between the two
    for model in (plain, compiled):
        model.trainable()
        predicted(model).square().mean().backward()
    assert graphs.frame_count > counts[3]
    gradients = {n: p.grad for n, p in compiled.denoiser.named_parameters() if p.requires_grad}
    assert gradients.keys() == {n for n, p in plain.denoiser.named_parameters() if p.requires_grad}
    assert gradients.keys() == compiled.trainable_state().keys() == plain.trainable_state().keys()
    for key, parameter in plain.denoiser.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-6, msg=key)
    assert any(value is not None and value.abs().max() > 1e-5 for value in gradients.values())


def test_the_copy_of_a_compiled_model_is_its_reference(tmp_path: Path, graphs: CompileCounterWithBackend) -> None:
    tiny_pipelines.build("pixart").save_pretrained(tmp_path)
    plain, compiled = (prepared(tmp_path, 0, value) for value in (False, True))
    reference = compiled.frozen_copy()
    with torch.no_grad():
        for model in (compiled, reference):
            torch.testing.assert_close(predicted(model), predicted(plain), rtol=1e-4, atol=1e-5)
        assert graphs.frame_count > 0
        next(compiled.denoiser.parameters()).add_(1.0)
        assert (predicted(compiled) - predicted(reference)).abs().max() > 1e-3
    assert compiled.trainable_state().keys() == plain.trainable_state().keys()
