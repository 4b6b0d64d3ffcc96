"""Two rewards at once and one that is only watched, on real Ray and Serve, against the plain loop."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rayjobs.rewards import load_in_process, reward_plans
from rayjobs.runtime import checkpoints
from rayjobs.runtime.driver import run
from sharpening.data.source import PromptSource
from sharpening.loop import train_in_process
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.policies import load_policy
from tests import runs
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures


def test_two_rewards_leave_the_plain_loops_curve(
    models: Models, local_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "rewards.yaml"
    settings.write_text("Brightness: {options: {channel: 1}}\nPatchy: {num_threads: 1, options: {one_in: 3}}\n")
    options = runs.options(
        models, tmp_path / "run", reward="clip:1.0,tests.own_rewards:Brightness:0.2",
        reward_model=f"clip={models.clip}", reward_config=settings, watch="tests.own_rewards:Patchy",
        skip_evaluation=None, eval_prompts=12, eval_other_prompts=6, eval_steps=2,
        validation_steps=2, validation_prompts=6,
    )  # fmt: skip
    folder = run(options)
    said = capfd.readouterr()
    runs.check_whole(folder)
    found = runs.curve(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = train_in_process(
            load_policy(models.pipeline), RLHFSharpening(options.method_options()),
            load_in_process(reward_plans(options), options.mix), PromptSource(runs.PROMPTS),
            options.training_options(),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    stems = [f"reward_{name}_{what}" for name in ("clip", "Brightness") for what in ("count", "mean", "std")]
    # Update 0 draws from the pretrained model in both, but a pixel may round otherwise in a process that computed other
    # things before; a later one differs by what AdamW and DeepSpeed's do.
    for name in ("reward", "reward_level", *stems):
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-4, abs=1e-4), name
    for name in ("loss", "reward", "reward_level", *stems):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=2e-3, abs=2e-3), name
    # A checkpoint has what later rollouts are standardised by.
    state, rows = checkpoints.read(checkpoints.listed(folder / "checkpoints")[0])
    assert [row["reward_clip_mean"] for row in rows] == [row["reward_clip_mean"] for row in found[: state.update]]

    # The evaluation: every reward in its own unit, the watched one too, and nothing of it in the training.
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("reward", "reward_clip", "reward_Brightness", "reward_Patchy"):
        assert name in summary["metrics"]
    assert summary["metrics"]["reward"]["before"]["mean"] == pytest.approx(0, abs=1e-6)  # the base model's own scale
    assert summary["rewards"]["Patchy"] == {"weight": None, "watched": True}
    evaluated = pq.read_table(folder / "evaluation.parquet").to_pylist()
    patchy = [row["reward_Patchy"] for row in evaluated]
    assert None in patchy
    assert all(row["reward"] is not None for row in evaluated)
    assert any(row["reward_Patchy"] is not None for row in evaluated)
    assert not [name for name in found[0] if "Patchy" in name]
    looks = pq.read_table(folder / "validation.parquet").to_pylist()
    assert looks
    assert {"reward", "reward_clip", "reward_Brightness", "reward_Patchy", "facts"} <= set(looks[0])
    assert "reward Brightness" in said.out
    assert "only watched: Patchy" in said.out
    config = json.loads((folder / "config.json").read_text())
    assert config["reward_config"]["Brightness"] == {"options": {"channel": 1}}
    assert config["reward"] == "clip:1.0,tests.own_rewards:Brightness:0.2"
