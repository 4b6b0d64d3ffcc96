"""The benchmark's measured parts: the yardstick's loss against its formula, turns, the process that does the jobs."""

import io
import json
import math

import numpy as np
import pytest
import torch

from rayjobs.benchmark.contenders import least_time_first, our_contenders
from rayjobs.benchmark.yardstick import Yardstick, YardstickOptions, preference_loss
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.seeds import generator, noise

OPTIONS = YardstickOptions(branches=3, branch_steps=3, rollout_steps=5, beta=40.0)


# -- turns ------------------------------------------------------------------------------------------------------------


def test_contenders_get_equal_time_by_turns(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    order = []

    class Slow:
        prompts = pairs = 1

        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def update(self, number):
            order.append((self.name, number))
            clock[0] += self.seconds

    spent = least_time_first({"a": Slow("a", 1.0), "b": Slow("b", 3.0)}, seconds=6.0)
    assert spent == {"a": [1.0] * 6, "b": [3.0] * 2}
    assert order[:2] == [("a", 0), ("b", 0)]  # not counted
    assert order[2:] == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 2), ("a", 5), ("a", 6)]


def test_ours_has_the_yardsticks_branches():
    found = our_contenders(YardstickOptions(branches=3, branch_steps=3, rollout_steps=25))
    assert {name: change["timesteps_per_rollout"] for name, change in found.items()} == {
        "K=1": 1, "K=4": 4, "K=1, same m and steps": 1, "K=4, same m and steps": 4
    }  # fmt: skip
    assert all(change["branches"] == 3 for change in found.values())
    assert "branch_steps" not in found["K=4"]
    assert found["K=4, same m and steps"]["branch_steps"] == 3
    assert found["K=4, same m and steps"]["rollout_steps"] == 25


# -- yardstick -----------------------------------------------------------------------------------------------------


def test_the_yardsticks_loss_by_hand():
    errors = torch.tensor([[0.5, 0.7], [0.2, 0.2], [0.4, 0.6]])
    rewards = torch.tensor([[1.0, 2.0], [4.0, 1.0], [2.5, 2.0]])  # sums 3, 5, 4.5: winner 1, loser 0
    reference = torch.tensor([0.55, 0.25, 9.0])
    inside = 10.0 * ((0.25 - 0.2) - (0.55 - 0.6))
    expected = math.log1p(math.exp(-inside)) + 2.0
    assert preference_loss(errors, reference, rewards, beta=10.0).item() == pytest.approx(expected, rel=1e-6)


def test_the_yardsticks_gap_has_no_gradient():
    errors = torch.rand(3, 2, requires_grad=True)
    rewards = torch.rand(3, 2, requires_grad=True)
    gradients = torch.autograd.grad(
        preference_loss(errors, torch.rand(3), rewards, 5.0), [errors, rewards], allow_unused=True
    )
    assert gradients[1] is None
    assert (gradients[0] != 0).any(dim=1).sum() == 2  # winner and loser, not the one between


def red(images, prompts):
    return Scores(images[..., 0].mean(axis=(1, 2), dtype=np.float64).astype(np.float32))


def test_the_yardsticks_loss_is_its_formula_on_a_model(policy):
    """Branch by branch, without a graph, from the policy's own steps and its own decoder."""
    reference = policy.frozen_copy()
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(
                0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    loss, walk = Yardstick(policy, reference, red, OPTIONS).loss("a red circle", run_seed=3, update=1)

    condition, grid = policy.encode(["a red circle"]), policy.timesteps(5)
    place = int(generator(3, "yardstick timestep", 1).integers(5))
    paths, errors, first = [], [], []
    with torch.no_grad():
        for k in range(3):
            eps = noise(policy.latent_shape, 3, "yardstick", 1, k)[None]
            x = policy.add_noise(sample(policy, condition, eps, 5), eps, grid[place, None])
            first.append(((reference.predict(x, grid[place, None], condition).eps - eps) ** 2).mean())
            rewards, misses = [], []
            for t in grid[place : place + 3]:
                prediction = policy.predict(x, t[None], condition)
                misses.append(((prediction.eps - eps) ** 2).mean())
                rewards.append(float(red(policy.decode(prediction.x0), [""]).values[0]))
                x = policy.step(x, t[None], policy.previous(t[None], 5), prediction)
            paths.append(sum(rewards))
            errors.append(sum(misses) / len(misses))
    w, b = int(np.argmax(paths)), int(np.argmin(paths))
    inside = OPTIONS.beta * ((first[w] - errors[w]) - (first[b] - errors[b])).item()
    assert abs(inside) > 0.02
    assert loss.item() == pytest.approx(math.log1p(math.exp(-inside)) + paths[w] - paths[b], abs=5e-3)

    assert walk.errors.shape == walk.rewards.shape == (3, min(3, 5 - place))
    assert all(pixels.grad_fn is not None for pixels in walk.pixels)  # the VAE's graphs are kept
    assert walk.errors.grad_fn is not None


def test_the_yardstick_makes_updates(policy):
    reference = policy.frozen_copy()
    before = policy.trainable_state()
    yardstick = Yardstick(policy, reference, red, OPTIONS)
    assert math.isfinite(yardstick.update("a red circle", 0, 0))
    after = policy.trainable_state()
    assert any((after[name] != before[name]).any() for name in before)
    assert all((reference.denoiser.state_dict()[name] == before[name]).all() for name in before)


# -- the process with torch ----------------------------------------------------------------------------------------


@pytest.fixture
def job_options(pipeline_folder, tmp_path):
    """A small job whose reward is the brightness of images: no reward model is loaded."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\nthree crosses\na green triangle\n")
    from rayjobs.options import RLHFOptions

    return RLHFOptions(
        pretrained_model_name_or_path=str(pipeline_folder), prompts=str(prompts), prompts_per_update=4,
        rollout_batch_size=2, rollout_steps=4, branches=2, timesteps_per_rollout=2, train_batch_size=4,
    )  # fmt: skip


def test_jobs_go_through_lines_of_json(job_options, tmp_path, monkeypatch):
    from rayjobs.benchmark import worker

    monkeypatch.setattr(worker, "load_in_process", lambda plans, mix, **options: red)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    file = tmp_path / "experience.pt"
    jobs = [
        ("loop", {"updates": 2}),
        ("collect", {"branches": 5, "prompts": 2, "path": str(file)}),
        ("learner_memory", {"path": str(file)}),
        ("rates", {"seconds": 0.01, "evaluation_prompts": 3}),
    ]
    lines = [{"config": job_options.config(), "threads": 1, "device": "cpu"}]
    lines += [{"job": name, "arguments": arguments} for name, arguments in jobs]
    answers = io.StringIO()
    # The yardstick's 25 steps and our copies of them are what takes long here: fewer will do.
    monkeypatch.setattr(worker, "YardstickOptions", lambda **changes: YardstickOptions(3, 2, 4, **changes))
    worker.serve(io.StringIO("\n".join(json.dumps(line) for line in lines)), answers)
    results = [m["result"] for m in map(json.loads, answers.getvalue().splitlines()) if "result" in m]
    loop, groups, memory, rates = results
    assert [row["update"] for row in loop] == [0, 1]
    assert loop[0]["images_scored"] == 4 * 2 * 2
    assert groups == 2 * 2
    assert torch.load(file, weights_only=False).path_rewards.shape == (4, 5)
    assert memory["peak"] > 0.9 * memory["loaded"] > 0  # the system counts the two a little differently
    assert list(rates) == ["public order", *our_contenders(OPTIONS)]
    assert (rates["public order"]["prompts"], rates["K=4"]["prompts"], rates["K=4"]["pairs"]) == (1, 4, 16)
    assert rates["K=4"]["options"]["branches"] == 3
    assert rates["K=1"]["reward"]["prompts"] == 3
    assert rates["K=1"]["reward"]["low"] <= rates["K=1"]["reward"]["mean"] <= rates["K=1"]["reward"]["high"]
    assert all(entry["seconds"] for entry in rates.values())


def test_an_unknown_job_is_answered(job_options):
    from rayjobs.benchmark import worker

    lines = [
        {"config": job_options.config(), "threads": torch.get_num_threads(), "device": "cpu"},
        {"job": "exit", "arguments": {}},
    ]
    answers = io.StringIO()
    with pytest.raises(ValueError, match="no job 'exit'"):
        worker.serve(io.StringIO("\n".join(json.dumps(line) for line in lines)), answers)
    assert "no job 'exit'" in json.loads(answers.getvalue())["error"]
