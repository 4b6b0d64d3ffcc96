"""The search job with real Ray, Serve and two rewards: killed and started again, it goes on and finds the same."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusers import AutoencoderKL
from PIL import Image

from sharpening.policies import load_policy
from sharpening.rewards.combined import CombinedScore, load_rewards
from sharpening.sampling import sample
from sharpening.search import load_search
from sharpening.search.base import SearchSeeds
from sharpening.seeds import noise
from tests import runs
from tests.listening import listening, outward_address
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures

REWARDS = "clip:1.0,tests.own_rewards:Brightness:0.5"


def test_a_killed_search_goes_on_where_it_was(models: Models, local_ray: None, tmp_path: Path) -> None:
    """First in a Ray of its own, then in one that is there already."""
    folder, vae = tmp_path / "search", tmp_path / "vae"
    other = AutoencoderKL.from_pretrained(models.pipeline / "vae")
    other.register_to_config(scaling_factor=0.4)
    other.save_pretrained(vae)
    address = outward_address()
    arguments = [
        "--pretrained_model_name_or_path", str(models.pipeline), "--search", "random", "--budget", "12",
        "--rollout_steps", "4", "--num_prompts", "12", "--rollout_batch_size", "2", "--output_dir", str(folder),
        "--reward", REWARDS, "--num_rollout_actors", "1", "--resolution", "72",
        "--pretrained_vae_model_name_or_path", str(vae),
    ]  # fmt: skip
    process = runs.start_process([*arguments, "--bind", address], tmp_path, "search")
    try:
        parts = folder / "parts"
        runs.wait_for(lambda: len(list(parts.glob("*.json"))) >= 2 or process.poll() is not None, "two tasks")
        heard = listening(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert heard["ray::RuntimeEnvAgent"] == {address}  # of Ray's processes the one that opens no other interface
    assert address not in (folder / "config.json").read_text()
    before = {path.name: path.read_bytes() for path in (folder / "parts").glob("*.json")}
    assert before
    scale = (folder / "scale.json").read_bytes()
    process = runs.start_process(arguments, tmp_path, "search", joins=True)
    said = runs.finish_process(process)
    assert process.returncode == 0, said
    assert "Serve" not in said  # its own lines
    assert f"{len(before)} of 6 tasks were done before" in said or len(before) == 6, said
    assert all((folder / "parts" / name).read_bytes() == contents for name, contents in before.items())
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert len({row["index"] for row in rows}) == 12
    assert all(Image.open(folder / row["image"]).size == (72, 72) for row in rows)
    assert all(row["facts"] is None for row in rows)  # the verifiers know images of 64 pixels alone
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["nfe"] == 12 * 12  # three images of four steps each, twelve prompts
    assert summary["images_scored"] == 12 * 3
    assert summary["metrics"]["reward"]["mean"] == pytest.approx(sum(row["reward"] for row in rows) / 12)
    assert summary["metrics"]["reward_clip"]["mean"] == pytest.approx(sum(row["reward_clip"] for row in rows) / 12)
    # What the two rewards are compared by: forty-eight images that nobody searched for, measured once.
    assert (folder / "scale.json").read_bytes() == scale
    assert summary["nfe_scale"] == 48 * 4
    scores = {name: np.array(values) for name, values in json.loads(scale)["scores"].items()}
    policy, score = load_policy(models.pipeline, resolution=72, vae=vae), load_rewards(REWARDS)
    assert isinstance(score, CombinedScore)
    index, prompt = min((row["index"], row["prompt"]) for row in rows)
    drawn = sample(policy, policy.encode([prompt]), noise(policy.latent_shape, 0, "scale", index, 0)[None], 4, 1.0)
    alone = score(policy.decode(drawn), [prompt]).parts
    for name, values in scores.items():
        assert len(values) == 48
        assert values[0] == pytest.approx(alone[name][0], rel=1e-3, abs=1e-3)
    # The same search in this process, all prompts at once: batches and actors change nothing.
    rows.sort(key=lambda row: row["index"])
    found = load_search("random", steps=4).search(
        policy, score.beside(scores), [row["prompt"] for row in rows], 12,
        SearchSeeds(0, tuple(row["index"] for row in rows)),
    )  # fmt: skip
    assert [row["reward"] for row in rows] == pytest.approx(list(found.rewards), abs=0.05)
    for row in rows:
        z = {name: (row[f"reward_{name.replace('-', '_')}"] - v.mean()) / v.std() for name, v in scores.items()}
        assert row["reward"] == pytest.approx(z["clip"] + 0.5 * z["Brightness"], abs=1e-4)
    assert all(
        np.abs(np.asarray(Image.open(folder / row["image"])).astype(int) - image).max() <= 2
        for row, image in zip(rows, found.images, strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "luck"], "--search: unknown search, choose one of random"),
        (["--budget", "0"], "--budget: must be at least 1"),
        (["--prompts", "absent.txt"], "--prompts: there is no file absent.txt"),
        (["--pretrained_model_name_or_path", "nowhere"], "--pretrained_model_name_or_path: there is no folder nowhere"),
        (["--resolution", "70"], "--resolution: is 70, but the model draws multiples of 8 pixels; pass 64"),
        (
            ["--pretrained_vae_model_name_or_path", "nowhere"],
            "--pretrained_vae_model_name_or_path: there is no folder nowhere",
        ),
        (["--search_config", "absent.json"], "--search_config: cannot read absent.json"),
        (["--reward", "clip:0"], "--reward: the weight of 'clip:0' must be a finite number other than 0"),
        (["--reward", "absent.module:Mine"], "--reward: there is no module absent.module"),
        (["--budget", "3"], "--budget: 3 evaluations do not pay for one image; pass 4 or more"),
    ],
)
def test_wrong_options_cost_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from rayjobs.search import main

    monkeypatch.chdir(tmp_path)
    assert main(["--rollout_steps", "4", *arguments, "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "parts").exists()
