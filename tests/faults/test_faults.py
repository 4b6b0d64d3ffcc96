"""Real processes of real runs are killed, stopped and starved; the run goes on, or ends with its checkpoint intact."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayjobs.command_line import parse
from rayjobs.errors import RunStopped
from rayjobs.options import JobOptions
from rayjobs.runtime import checkpoints
from rayjobs.runtime.driver import run
from rayjobs.validation import validate
from tests import runs
from tests.runs import Models, local_ray, models, served, undisturbed, undisturbed_anywhere

__all__ = ["local_ray", "models", "served", "undisturbed", "undisturbed_anywhere"]  # fixtures


def resumed(stopped: RunStopped) -> JobOptions:
    """What the very command that the message names would go on with."""
    _, _, command = str(stopped).partition("python rayjobs/rlhf.py ")
    return validate(parse(shlex.split(command)))


def test_killed_processes_cost_time_and_nothing_else(
    undisturbed_anywhere: Path, models: Models, local_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rollout actor, a reward replica and a learner rank are SIGKILLed while the run uses them."""
    folder = tmp_path / "struck"
    killed: list[int] = []
    saboteur = runs.Saboteur(folder, [
        (1, lambda: killed.append(runs.kill_process("ray::RolloutActor"))),
        (2, lambda: killed.append(runs.kill_process(f"ray::ServeReplica:reward-{folder.name}"))),
        (3, lambda: killed.append(runs.kill_process("ray::RayTrainWorker"))),
    ])  # fmt: skip
    run(runs.options(models, folder, num_rollout_actors=2))
    saboteur.finish()
    assert len(killed) == 3
    runs.check_whole(folder)
    assert runs.curve(folder) == runs.curve(undisturbed_anywhere)
    said = capfd.readouterr().err
    assert re.search(r"rollout-\d died; its task goes to the next idle actor", said)
    assert re.search(r"rollout-\d is back as process \d+", said)
    assert re.search(r"1 of 1 replicas of 'reward-struck' died; Serve starts as many again", said)
    assert re.search(r"'reward-struck' has all its replicas again", said)
    assert re.search(r"the learner group lost a rank and was restarted at update [24]", said)
    rows = runs.read_metrics(folder)
    assert rows[-1]["restarts_rollout"] == 1
    assert rows[-1]["restarts_learner"] == 1


def test_a_reward_that_stays_down_stops_a_run_that_can_resume(
    undisturbed_anywhere: Path, models: Models, local_ray: None, tmp_path: Path
) -> None:
    folder = tmp_path / "down"

    def hang() -> None:
        (replica, *_) = runs.processes(f"ray::ServeReplica:reward-{folder.name}")
        os.kill(replica.pid, signal.SIGSTOP)

    saboteur = runs.Saboteur(folder, [(3, hang)])
    with pytest.raises(RunStopped, match=r"the reward 'reward-down' gave no answer for 5 s") as stopped:
        run(runs.options(models, folder, reward_timeout=5))
    saboteur.finish()
    made = len(runs.curve(folder))
    assert 3 <= made < runs.UPDATES
    # Its weights were sound, so nothing is lost: the checkpoint is of the last update, not of the last even one.
    checkpoint = folder / "checkpoints" / f"checkpoint-{made:06d}"
    state, rows = checkpoints.read(checkpoint)
    assert (state.update, len(rows)) == (made, made)
    assert runs.curve(folder) == runs.curve(undisturbed_anywhere)[:made]
    again = resumed(stopped.value)
    assert (again.resume_from_checkpoint, again.output_dir) == (str(checkpoint), str(folder))


def test_a_reward_that_is_not_a_number_stops_the_run(models: Models, local_ray: None, tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    for file in models.clip.iterdir():
        (clip / file.name).write_bytes(file.read_bytes())
    state = load_file(models.clip / "open_clip_model.safetensors")
    save_file(
        {name: torch.full_like(value, torch.nan) for name, value in state.items()}, clip / "open_clip_model.safetensors"
    )
    with pytest.raises(RunStopped, match=r"4 of 4 prompts of update 0 .*4 not finite.*; no checkpoint was written yet"):
        run(runs.options(models, tmp_path / "nan-reward", reward_model=clip))
    assert runs.curve(tmp_path / "nan-reward") == []


def test_a_loss_that_is_not_a_number_stops_the_run(models: Models, served: str, tmp_path: Path) -> None:
    folder = tmp_path / "nan-loss"
    with pytest.raises(RunStopped, match=r"of update 1 is not finite; lower --learning_rate") as stopped:
        run(
            runs.options(
                models, folder, learning_rate=1e30, lr_warmup_steps=0, lr_scheduler="constant", checkpointing_steps=1,
                served_rewards=served,
            )
        )  # fmt: skip
    assert [row["update"] for row in runs.curve(folder)] == [0]
    assert stopped.value.resume.endswith("checkpoint-000001")
    assert checkpoints.read(checkpoints.path_for(folder / "checkpoints", 1))[0].update == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints and a half."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: root is needed")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoints_before_intact(models: Models, served: str, small_disk: Path) -> None:
    folder = small_disk / "run"
    with pytest.raises(RunStopped, match=r"checkpoint \d could not be written to .*") as stopped:
        run(runs.options(models, folder, checkpointing_steps=1, checkpoints_total_limit=9, served_rewards=served))
    found = checkpoints.listed(folder / "checkpoints")
    assert found
    assert stopped.value.resume.endswith(found[-1].name)
    for checkpoint in found:
        torch.load(checkpoint / "engine" / "mp_rank_00_model_states.pt", weights_only=False)
    assert not list((folder / "checkpoints").glob("partial-*"))


def test_metrics_that_cannot_be_written_stop_the_run(models: Models, served: str, tmp_path: Path) -> None:
    folder = tmp_path / "no-room"

    def fill() -> None:
        os.symlink("/dev/full", folder / "full")
        (folder / "full").rename(folder / "metrics.jsonl")

    saboteur = runs.Saboteur(folder, [(3, fill)])
    with pytest.raises(RunStopped, match=r"metrics could not be written to .*: the disk is full") as stopped:
        run(runs.options(models, folder, served_rewards=served))
    saboteur.finish()
    assert stopped.value.resume.endswith("checkpoint-000002")
