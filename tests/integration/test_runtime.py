"""Real runs on Ray, Serve, Train and DeepSpeed: what the number of processes may not change, and what it may."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rayjobs import machine
from rayjobs.mirror.address import normal
from rayjobs.runtime import checkpoints
from rayjobs.runtime.driver import run
from sharpening.evaluation.run_folder import RunFolder
from tests import runs, submitting
from tests.listening import exposed, listening, silent
from tests.runs import Models, local_ray, models, served, served_pair, undisturbed
from tests.s3_server import KEYS, S3, s3
from tests.scraping import scrape

__all__ = ["local_ray", "models", "s3", "served", "served_pair", "undisturbed"]  # fixtures


# Ray Train's, where nothing is read from Ray Data and nobody adds nodes.
IDLE = ("DatasetManager", "PlacementGroupCleaner", "AutoscalingCoordinator")


def test_a_run_leaves_what_explains_it(undisturbed: Path) -> None:
    runs.check_whole(undisturbed)
    for name in (
        "config.json",
        "versions.json",
        "cost.json",
        "summary.json",
        "metrics.parquet",
        "reward_curve.png",
        "report.html",
    ):
        assert (undisturbed / name).stat().st_size > 0
    rows = runs.curve(undisturbed)
    assert [row["version"] for row in rows] == list(range(runs.UPDATES))
    assert len({row["loss"] for row in rows}) == runs.UPDATES  # the weights moved, and the prompts with them
    cost = json.loads((undisturbed / "cost.json").read_text())
    images = 4 * 2 * 3  # prompts, timesteps, branches
    generate, branch, pairs = 4 * 3 * 4, images, 4 * 2 * 2
    assert cost["images_scored"] == runs.UPDATES * images
    assert cost["nfe"]["training"] == runs.UPDATES * (generate + branch + pairs + pairs)
    assert [path.name for path in checkpoints.listed(undisturbed / "checkpoints")] == [
        "checkpoint-000004", "checkpoint-000006",
    ]  # fmt: skip


def test_the_final_pipeline_holds_the_learnt_weights(undisturbed: Path, models: Models) -> None:
    from safetensors.torch import load_file

    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    before, after = load_file(models.pipeline / name), load_file(undisturbed / "pipeline" / name)
    moved = max(float((after[key] - before[key]).abs().max()) for key in before)
    assert 1e-4 < moved < 1e-1
    newest = checkpoints.listed(undisturbed / "checkpoints")[-1]
    state = torch.load(newest / "engine" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert all(torch.equal(state[f"denoiser.{key}"], value) for key, value in after.items())


def test_the_curve_is_the_plain_loops(undisturbed: Path, models: Models) -> None:
    from sharpening.data.source import PromptSource
    from sharpening.loop import train_in_process
    from sharpening.methods.rlhf import RLHFSharpening
    from sharpening.options import TrainingOptions
    from sharpening.policies import load_policy
    from sharpening.rewards.clip import ClipScorer

    options = runs.options(models, undisturbed.parent / "not-made")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training = TrainingOptions(
            updates=runs.UPDATES, prompts_per_update=options.prompts_per_update,
            rollout_batch_size=options.rollout_batch_size, train_batch_size=options.train_batch_size,
            learning_rate=options.learning_rate, lr_scheduler=options.lr_scheduler,
            lr_warmup_steps=options.lr_warmup_steps,
            adam_beta1=options.adam_beta1, adam_beta2=options.adam_beta2, max_grad_norm=options.max_grad_norm,
        )  # fmt: skip
        expected = train_in_process(
            load_policy(models.pipeline), RLHFSharpening(options.method_options()), ClipScorer(str(models.clip)),
            PromptSource(runs.PROMPTS), training,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    found = runs.curve(undisturbed)
    for name in ("reward", "loss", "learning_rate"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=2e-4)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=1e-2)


def test_a_run_leaves_the_reward_that_it_joined(undisturbed: Path, served: str) -> None:
    from reward_servers.applications import running_replicas

    runs.check_whole(undisturbed)
    assert running_replicas(served) == 1
    assert running_replicas(f"reward-{undisturbed.name}") == 0


def test_a_run_in_a_ray_without_dashboard_starts_no_helper_that_is_idle(undisturbed: Path) -> None:
    """One of them would ask the dashboard for twelve seconds at the run's end."""
    from ray._private.state import actors

    runs.check_whole(undisturbed)
    started = {actor["ActorClassName"] for actor in actors().values()}  # those that have ended as well
    for kind in ("RolloutActor", "TrainController"):
        assert any(kind in name for name in started)
    for helper in IDLE:
        assert not any(helper in name for name in started)


def test_a_run_counts_what_its_cost_account_says(undisturbed: Path) -> None:
    cost = json.loads((undisturbed / "cost.json").read_text())
    found = runs.wait_for(lambda: scrape(undisturbed.name), "the run's counters")
    made = found["ray_sharpening_updates_made_total"][frozenset()]
    assert 1 <= made <= runs.UPDATES  # the last second before the coordinator ends may not be exported
    for stage in ("rollout", "reference", "learn"):
        counted = found["ray_sharpening_nfe_total"][frozenset({("stage", stage)})]
        assert counted * runs.UPDATES % cost["nfe"][stage] == 0
        assert 0 < counted <= cost["nfe"][stage]


def test_overlapped_runs_of_two_rewards_are_reproducible_and_survive_an_interrupt(
    models: Models, served_pair: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the rewards are standardised by is a part of the state that is resumed."""
    config = json.loads((runs.ROOT / "cluster" / "deepspeed_zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # or it would leave a small model whole
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    stale = {
        "staleness": 1, "deepspeed_config": tmp_path / "zero3.json", "reward": runs.PAIR,
        "reward_model": f"clip={models.clip}", "served_rewards": served_pair,
    }  # fmt: skip
    assert threading.current_thread() is threading.main_thread()
    first = tmp_path / "interrupted"
    address = f"file://{tmp_path}/elsewhere/interrupted"
    saboteur = runs.Saboteur(first, [(2, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    with pytest.raises(KeyboardInterrupt):
        run(runs.options(models, address, local_dir=first, **stale))
    saboteur.finish()
    made = len(runs.curve(first))
    assert 2 <= made < runs.UPDATES
    newest = checkpoints.listed(first / "checkpoints")[-1]
    assert newest.name == f"checkpoint-{made:06d}"
    assert list(newest.glob("version-*.safetensors"))  # the version that the next rollouts lag behind to
    there = tmp_path / "elsewhere" / "interrupted"
    runs.check_copied(first, {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()})
    said = capfd.readouterr().err
    assert f"--output_dir {address} --local_dir {first} --resume_from_checkpoint {newest}" in said
    assert said.rstrip().endswith(f"everything is at {address}")
    run(runs.options(models, first, **stale, resume_from_checkpoint=newest))  # and in its folder alone from now on
    second = run(runs.options(models, tmp_path / "at-once", **stale, num_rollout_actors=2))
    for folder in (first, second):
        runs.check_whole(folder)
    assert [row["version"] for row in runs.curve(second)] == [0, 0, 1, 2, 3, 4]
    assert runs.curve(first) == runs.curve(second)
    for name in ("clip", "Brightness"):  # whose statistics changed with every update, over the interrupt as well
        for column in (f"reward_{name}_mean", f"reward_{name}_std"):
            assert len({row[column] for row in runs.curve(first)}) == runs.UPDATES
    assert len({row["reward"] for row in runs.curve(first)}) == runs.UPDATES


OWN = ("a red circle", "a photo of a cat, asleep")


def check_own_prompts(models: Models, folder: Path, said: str) -> None:
    """The user's own prompts: the base model's and the final pipeline's images get the rewards they have here."""
    from sharpening.policies import load_policy
    from sharpening.rewards.clip import ClipScorer
    from sharpening.sampling import sample
    from sharpening.seeds import noise

    rows = RunFolder(folder).own_prompts()
    drawn = {update: [row for row in rows if row["update"] == update] for update in {row["update"] for row in rows}}
    assert {0, runs.UPDATES} <= set(drawn) <= set(range(runs.UPDATES + 1))
    texts = [text for text in OWN for _ in range(2)]
    for update, model in ((0, models.pipeline), (runs.UPDATES, folder / "pipeline")):
        policy = load_policy(model)
        start = torch.stack([noise(policy.latent_shape, 0, "evaluation", place) for place in range(4)])
        with torch.no_grad():
            images = policy.decode(sample(policy, policy.encode(texts), start, 2, 1.0))
        expected = ClipScorer(str(models.clip))(images, texts).values
        assert [row["reward"] for row in drawn[update]] == pytest.approx(expected, rel=1e-3)
    for update, found in drawn.items():
        assert [row["prompt"] for row in found] == texts
        assert not [name for row in found for name in row if "facts" in name]
        assert (folder / f"own_prompts_{update:06d}.png").is_file()
    assert f"own prompts after update {runs.UPDATES}: reward " in said
    assert "<h3>Your own prompts</h3>" in (folder / "report.html").read_text()


COMPUTE = ("ray::RolloutActor", "ray::RayTrainWorker", "ray::ServeReplica")


def check_torch(holders: list[str], others: list[str]) -> None:
    """Only what computes imports torch; of the driver its writer of TensorBoard's files."""
    for title in COMPUTE:
        assert any(title in line for line in holders)
    for title in ("ray::TrainController", "ray::Coordinator"):
        assert any(title in line for line in others)
        assert not any(title in line for line in holders)
    for helper in IDLE:
        assert not any(helper in line for line in [*holders, *others])


def test_a_killed_job_goes_on_as_a_submitted_one(undisturbed: Path, models: Models, s3: S3, tmp_path: Path) -> None:
    """On a machine that has nothing of it: what the bucket has is enough."""
    home = tmp_path / "home"
    home.mkdir()
    name = "läuft, λ = 1"  # names are anybody's
    folder, address = tmp_path / name, f"s3://bucket/runs/{name}"
    evaluation: dict[str, Any] = {"skip_evaluation": None, "eval_prompts": 12, "eval_steps": 2}
    evaluation |= {"report_to": "tensorboard", "validation_steps": 3}
    evaluation |= {"validation_prompts": 6, "validation_prompt": OWN, "num_validation_images": 2}
    arguments = runs.flags(models, address, local_dir=folder, **evaluation)
    process = runs.start_process(arguments, home)
    try:
        marker = "checkpoints/checkpoint-000002/trainer_state.json"
        runs.wait_for(lambda: process.poll() is not None or (folder / marker).exists(), "a checkpoint")
        assert process.poll() is None, process.communicate()[0]
        (learner,) = runs.processes("ray::RayTrainWorker", process.pid)
        os.kill(learner.pid, signal.SIGSTOP)  # the run is not to end before its checkpoint is in the bucket
        runs.wait_for(lambda: marker in s3.names(f"runs/{name}"), "the checkpoint's copy", pause=0.3)
        heard = listening(process.pid)
        torch_in, torch_not_in = runs.holders("libtorch_cpu", process.pid)
        parents = [worker.parent() for title in COMPUTE for worker in runs.processes(title, process.pid)]
        (reporter,) = [
            each
            for each in psutil.Process(process.pid).children(recursive=True)
            if "dashboard.py" in str(each.cmdline())
        ]
        tells = reporter.environ()["RAY_USAGE_STATS_ENABLED"]
    finally:
        for learner in runs.processes("ray::RayTrainWorker", process.pid):
            learner.kill()  # while it is stopped it does not notice that its Ray has gone
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    check_torch(torch_in, torch_not_in)
    assert len(parents) == len(COMPUTE)
    assert len(set(parents)) == 1 or machine.installed_gpus()  # the fork server of a Ray of its own
    assert tells == "0"  # Ray's makers are told nothing
    assert not silent(heard, "rlhf.py", "gcs_server", "raylet", "RolloutActor", "RayTrainWorker", "ServeReplica")
    assert exposed(heard) == {}  # a Ray of its own is on loopback, and so are the rendezvous and the reward
    assert 2 <= len(runs.curve(folder)) < runs.UPDATES
    assert not (folder / "pipeline").exists()
    shutil.rmtree(folder)
    config = tmp_path / "config.json"
    config.write_bytes(s3.files(f"runs/{name}")["config.json"])
    command = ["--config", str(config), "--resume_from_checkpoint", "latest", "--output_dir", address]
    command += ["--local_dir", str(folder), "--num_rollout_actors", "2"]
    with submitting.head(home, tmp_path / "head.log") as head:
        process = head.submit(command)
        speak = ("rlhf.py", "gcs_server", "dashboard.py", "RayTrainWorker")
        heard: dict[str, set[str]] = {}

        def all_heard() -> bool:
            heard.update(listening(head.pid))
            return not silent(heard, *speak)

        runs.wait_for(lambda: process.poll() is not None or all_heard(), "its processes to listen", pause=0.5)
        said = runs.finish_process(process)
        assert process.returncode == 0, said
        told = head.jobs()
    assert "rayjobs/rlhf.py --config" in told
    assert not silent(heard, *speak)
    assert exposed(heard) == {}  # a head that is told to stays on loopback, with its jobs
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for secret in (*submitting.SECRETS.values(), *KEYS.values(), head.environment["RAY_AUTH_TOKEN"]):
        assert secret not in said + told
        assert not any(secret.encode() in content for content in contents)
    runs.check_whole(folder)
    assert runs.curve(folder) == runs.curve(undisturbed)  # over a kill, and with two rollout actors since
    assert "fetching checkpoint-00000" in said
    assert f"everything is at {normal('output_dir', address)}" in said
    runs.check_copied(folder, s3.files(f"runs/{name}"))
    assert not (home / ".ray" / "auth_token").exists()

    # The evaluation: paired, at both guidance scales, in the table and in summary.json.
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["updates"] == runs.UPDATES
    assert summary["prompts"] == 12
    assert set(summary["guidance"]) == {"1", "3"}
    difference = summary["metrics"]["reward"]["difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert "guidance 1, as sharpened: 12 prompts, 2 evaluations an image" in said
    assert "guidance 3: 12 prompts, 4 evaluations an image" in said
    for name in ("samples_before.png", "samples_after.png", "evaluation.parquet"):
        assert (folder / name).stat().st_size > 0
    check_own_prompts(models, folder, said)
    # The tracker has every update, over the kill (an update that ended while its files were copied may be there twice),
    # and the table; the pipeline has its card.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs" / "tensorboard"))
    events.Reload()
    told = {event.step: event.value for event in events.Scalars("train/loss")}
    assert told == {row["update"] + 1: pytest.approx(row["loss"]) for row in runs.curve(folder)}
    assert {event.step for event in events.Images("samples/held_out")} <= set(range(runs.UPDATES))
    assert {0, runs.UPDATES} <= {event.step for event in events.Images("samples/own_prompts")}
    (gain,) = events.Scalars("final/guidance_1/reward/difference")
    assert gain.value == pytest.approx(difference["mean"])
    card = (folder / "pipeline" / "README.md").read_text()
    assert "| reward |" in card
    assert "samples_" in card
    check = "import sys; from diffusers import StableDiffusionXLPipeline as P; P.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", check, str(folder / "pipeline")], check=True, cwd=tmp_path)
