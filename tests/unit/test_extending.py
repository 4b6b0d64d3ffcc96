"""The method that docs/extending.md shows, registered and trained as the page says."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sharpening import methods
from sharpening.data.source import PromptSource
from sharpening.loop import train_in_process
from sharpening.methods.base import Seeds
from sharpening.methods.collecting import stratified_places
from sharpening.options import TrainingOptions
from sharpening.rewards.base import Scores

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
PROMPTS = ["a red circle", "a blue cross", "a green square"]


@pytest.fixture
def rwr(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's code as the modules that it names."""
    blocks = dict(re.findall(r'```python title="(\w+)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for kind in ("options", "method"):
        module = ModuleType(f"sharpening.{'methods' if kind == 'method' else kind}.rwr")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if kind == "method":
            exec("from sharpening.options.rwr import RWROptions", module.__dict__)
        exec(compile(blocks[kind], f"{PAGE.name}:{kind}", "exec"), module.__dict__)
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    exec(blocks["registration"], {"METHODS": methods.METHODS})
    return sys.modules["sharpening.methods.rwr"]


def test_the_loss_is_the_weighted_regression_and_a_failed_score_drops_its_prompt(rwr: ModuleType, policy) -> None:
    method = methods.load_method("rwr", methods.options_class("rwr")(samples=3, temperature=0.5, rollout_steps=3))
    calls = []

    def score(images, prompts):
        calls.append(len(images))
        values = images.mean(axis=(1, 2, 3)).astype("float32") / 20
        return Scores(values, {4: "timeout"})

    seeds = Seeds(0, 2, (0, 1, 2))
    experience = method.collect(policy, policy, score, PromptSource(PROMPTS).batch((0, 1, 2)), seeds)
    assert calls == [9]
    assert experience.dropped == [(1, "timeout")]
    assert experience.prompts == [PROMPTS[0], PROMPTS[2]]
    assert experience.images_scored == 9
    total = 0.0
    for row, slot in enumerate((0, 2)):
        t = stratified_places(Seeds(0, 2, (slot,)), len(policy.schedule), 1)[0]
        condition = policy.encode([experience.prompts[row]])
        exps = torch.exp(experience.path_rewards[row] / 0.5)
        for i in range(3):
            eps = policy.predict(experience.x_t[row, i, 0][None], t, condition).eps
            error = (eps - experience.target[row, i, 0]).square().mean()
            total += float((exps[i] / exps.sum() * error).detach()) / 2
    assert method.loss(policy, experience).value.item() == pytest.approx(total, rel=1e-4)


def test_the_plain_loop_and_the_command_line_know_it(rwr: ModuleType, policy, brightness) -> None:
    from rayjobs.command_line import parse

    options = parse(["--method", "rwr", "--samples", "3", "--temperature", "1"], "finetune.py", ("rwr", "rlhf"))
    assert type(options.method_options()).__name__ == "RWROptions"
    method = methods.load_method("rwr", options.method_options())
    training = TrainingOptions(updates=2, prompts_per_update=3, rollout_batch_size=3, train_batch_size=3)
    before = {name: value.clone() for name, value in policy.trainable_state().items()}
    rows = train_in_process(policy, method, brightness, PromptSource(PROMPTS), training)
    assert len(rows) == 2
    assert any(not torch.equal(before[name], value) for name, value in policy.trainable_state().items())
