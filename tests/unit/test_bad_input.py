"""Bad input: one line on stderr that names the option and what to do, exit code 2, before anything heavy starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rayjobs import machine
from rayjobs.command_line import parse
from rayjobs.rlhf import main
from rayjobs.runtime import checkpoints
from rayjobs.validation import validate
from tests.s3_server import s3

__all__ = ["s3"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A pipeline and an open_clip folder that look whole to the checks; nothing ever loads them."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = folder / "pipeline"
    configs = {"unet": {"sample_size": 8}, "vae": {"block_out_channels": [16, 32, 64, 96]}}
    for part, config in configs.items():
        (pipeline / part).mkdir(parents=True)
        (pipeline / part / "config.json").write_text(json.dumps(config))
        save_file({"w": np.zeros((64, 4), np.float32)}, pipeline / part / "diffusion_pytorch_model.safetensors")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text("{}")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (pipeline / "model_index.json").write_text(json.dumps(index))
    clip = folder / "clip"
    clip.mkdir()
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}))
    save_file({"w": np.zeros(4, np.float32)}, clip / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def schnell(models, tmp_path):
    """A FLUX that knows no guidance scale."""
    folder = tmp_path / "schnell"
    shutil.copytree(models / "pipeline", folder)
    (folder / "unet").rename(folder / "transformer")
    (folder / "transformer" / "config.json").write_text(json.dumps({"guidance_embeds": False, "in_channels": 16}))
    (folder / "vae" / "config.json").write_text(
        json.dumps({"sample_size": 32, "block_out_channels": [16, 32], "latent_channels": 4})
    )
    parts = {"transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **parts}))
    return folder


@pytest.fixture
def good(models, tmp_path, monkeypatch):
    """Flags with which everything is right; a test adds what is wrong, later flags win."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    model = ["--pretrained_model_name_or_path", str(models / "pipeline"), "--reward_model", str(models / "clip")]
    return [*model, "--prompts", "prompts.txt", "--use_gpu", "no", "--output_dir", str(tmp_path / "run")]


@pytest.fixture
def error(good, capsys):
    """Run the job with the good flags and some more; returns the option that is named, and the line."""

    def run(*argv: str | Path) -> tuple[str, str]:
        assert main([*good, *map(str, argv)]) == 2
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.count("\n") == 1
        assert streams.err.endswith("\n")
        assert streams.err.startswith("rlhf: error: --")
        option, _, reason = streams.err.removeprefix("rlhf: error: --").partition(": ")
        problem, separator, remedy = reason.partition("; ")
        assert problem.strip(), streams.err
        assert separator, streams.err
        assert remedy.strip(), streams.err
        return option, reason.strip()

    return run


def test_good_flags_pass_and_open_values_are_derived(good, tmp_path):
    options = validate(parse(good))
    assert options.resolution == 64
    assert options.gradient_accumulation_steps == options.accumulation
    assert options.eval_steps == options.rollout_steps
    assert options.use_gpu == "no"
    assert Path(options.deepspeed_config).name == "deepspeed_cpu.json"
    assert options.guidance_scale in options.eval_guidance_scales
    assert not (tmp_path / "run").exists()
    assert validate(parse([*good, "--resolution", "128"])).resolution == 128


@pytest.mark.parametrize(
    ("argv", "option", "says"),
    [
        ("--reward hpsv7", "reward", "choose one of clip"),
        ("--reward clip:0", "reward", "must be a finite number other than 0"),
        ("--reward clip,clip", "reward", "named twice"),
        ("--reward absent.module:Mine", "reward", "put its folder on PYTHONPATH"),
        ("--reward clip,tests.own_rewards:colour", "reward", "'colour' is a category of the evaluation"),
        ("--reward_combine ranks", "reward_combine", "one reward has no ranks"),
        ("--reward_combine mean", "reward_combine", "choose one of sum, ranks"),
        ("--reward_model clap=x", "reward_model", "this job has no reward 'clap'"),
        (
            "--reward embedded-aesthetic,clip --reward_model clip=/nowhere",
            "reward_model",
            "there is no folder /nowhere",
        ),
        ("--reward http --reward_model http://me:s3cret@judge/#clip", "reward_model", "holds a password or key"),
        ("--reward http --reward_model http://judge/?token=s3cret", "reward_model", "pass it in the environment"),
        ("--reward_config absent.yaml", "reward_config", "cannot read absent.yaml"),
        ("--watch clip", "watch", "clip is a reward of the training"),
        ("--watch embedded-verifier --skip_evaluation", "watch", "leave out --skip_evaluation"),
        ("--validation_prompt cat --skip_evaluation", "validation_prompt", "nothing is drawn but rollouts; leave out"),
        ("--validation_prompts cat --validation_steps 0", "validation_prompt", "no looks; pass --validation_steps 1"),
        ("--num_validation_images 2", "num_validation_images", "there are none; pass --validation_prompt"),
        ("--validation_prompt cat --num_validation_images 0", "num_validation_images", "must be at least 1, is 0"),
        (
            "--validation_prompt cat dog --num_validation_images 49",
            "validation_prompt",
            "2 prompts × 49 images are 98 a look, and a grid shows 96; pass fewer, or a smaller --num_validation",
        ),
        ("--validation_prompts 1", "validation_prompts", "must be at least 2, is 1"),
        ("--validation_prompts 3.5", "validation_prompts", "'3.5' is not a whole number"),
        ("--validation_prompts", "validation_prompts", "expected one argument"),
        ("--rollout_nodes rollout", "rollout_nodes", "must be a label key=value, such as role=rollout, is rollout"),
        ("--rollout_nodes role=rollout,role=any", "rollout_nodes", "must be a label key=value"),
        ("--learner_nodes role=learner", "learner_nodes", "join a cluster with --ray_address, or leave it out"),
        ("--output_dir ftp://host/run", "output_dir", "there is no storage 'ftp://'"),
        ("--output_dir s3://bucket", "output_dir", "s3://bucket names no run"),
        ("--output_dir s3://bucket/../run", "output_dir", "names no run"),
        ("--output_dir s3://me:s3cret@bucket/run", "output_dir", "holds a password or key"),
        ("--output_dir s3://s3cret@bucket/run", "output_dir", "the address holds a key; leave it out"),
        ("--output_dir gs://me%3As3cret@bucket/run", "output_dir", "pass it in the environment"),
        ("--output_dir abfss://box@account/run?client_secret=s3cret", "output_dir", "the address holds a key"),
        ("--output_dir file:///proc/self/run", "output_dir", "cannot write to file:///proc/self/run ("),
        ("--output_dir file:///mnt/run --local_dir /mnt/run/here", "local_dir", "lie in one another"),
        ("--local_dir elsewhere", "local_dir", "is for runs that are copied to an address"),
        ("--output_dir s3://bucket/run --local_dir s3://bucket/run", "local_dir", "is an address"),
        ("--resume_from_checkpoint gs://bucket/run", "resume_from_checkpoint", "leave --output_dir out"),
        ("--branches 1", "branches", "pass --branches 2 or more"),
        ("--branches two", "branches", "'two' is not a whole number"),
        ("--temperature -0.1", "temperature", "must be at least 0, is -0.1"),
        ("--temperature nan", "temperature", "must be a finite number"),
        ("--beta -300", "beta", "must be greater than 0"),
        ("--beta nan", "beta", "must be a finite number"),
        ("--beta inf", "beta", "must be a finite number"),
        ("--beta", "beta", "expected one argument"),
        ("--betas 3", "betas", "did you mean --beta?"),
        ("--loss hinge", "loss", "choose one of dpo_margin, dpo, rebel"),
        ("--loss rebel --reward_scale 0", "reward_scale", "above 0"),
        ("--timesteps_per_rollout 17 --rollout_steps 16", "timesteps_per_rollout", "16"),
        ("--branch_steps 9 --rollout_steps 8", "branch_steps", "does not fit into 8"),
        ("--latents_per_prompt 1 --branch_noise shared", "branch_noise", "pass fresh"),
        ("--latents_per_prompt 3", "latents_per_prompt", "0 (one a branch), 1 or"),
        ("--prompts_per_update 5 --timesteps_per_rollout 1 --train_batch_size 4", "train_batch_size", "pass --train_"),
        ("--gradient_accumulation_steps 99", "gradient_accumulation_steps", "is 99, but"),
        ("--learning_rate 0", "learning_rate", "greater than 0"),
        ("--lr_scheduler cosine --lr_warmup_steps 9 --max_train_steps 9", "lr_warmup_steps", "leave none of 9"),
        ("--lr_scheduler constant --lr_warmup_steps 2", "lr_warmup_steps", "constant_with_warmup"),
        ("--lr_scheduler polynomial --lr_warmup_steps 9 --max_train_steps 9", "lr_warmup_steps", "leave none of 9"),
        ("--lr_num_cycles 2", "lr_num_cycles", "says nothing to 'cosine'; pass --lr_scheduler cosine_with_restarts"),
        ("--eval_guidance_scales 1 x", "eval_guidance_scales", "not a number"),
        ("--eval_guidance_scales 1 nan", "eval_guidance_scales", "finite"),
        ("--max_failed_share 1", "max_failed_share", "less than 1"),
        ("--resolution 100", "resolution", "is 100, but the model draws multiples of 8 pixels; pass 96"),
        ("stray", "help", "unexpected argument 'stray'"),
    ],
)
def test_values(error, argv, option, says):
    named, line = error(*argv.split())
    assert named == option
    assert says in line
    assert "s3cret" not in line


def test_model_folder_missing(error, tmp_path):
    name = "pretrained_model_name_or_path"
    for value in (tmp_path / "nowhere", "./nowhere", "nowhere", "a/b/c"):
        assert error(f"--{name}", value)[0] == name
    (tmp_path / "models").mkdir()  # so `models/sdxl` is no hub id
    assert error(f"--{name}", "models/sdxl")[0] == name


def test_hub_id_is_left_to_the_hub_unless_offline(good, error, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert validate(parse([*good, "--pretrained_model_name_or_path", "owner/name"])).resolution is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert error("--pretrained_model_name_or_path", "owner/name")[0] == "pretrained_model_name_or_path"


def test_model_folder_truncated_or_incomplete(error, models, tmp_path):
    import shutil

    name = "pretrained_model_name_or_path"
    broken = shutil.copytree(models / "pipeline", tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    named, line = error(f"--{name}", broken)
    assert named == name
    assert "truncated" in line
    weights.unlink()
    assert error(f"--{name}", broken)[0] == name
    (broken / "model_index.json").unlink()
    assert "model_index.json" in error(f"--{name}", broken)[1]


def test_reward_model(error, models, tmp_path):
    import shutil

    assert error("--reward_model", "no-such-model")[0] == "reward_model"
    named, line = error("--reward_model", "ViT-L-14")
    assert named == "reward_checkpoint"
    assert "comes without weights" in line
    assert error("--reward_model", "ViT-L-14", "--reward_checkpoint", "weights.pt")[0] == "reward_checkpoint"
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    named, line = error("--reward_model", "ViT-L-14", "--reward_checkpoint", tmp_path / "half.safetensors")
    assert named == "reward_checkpoint"
    broken = shutil.copytree(models / "clip", tmp_path / "broken")
    (broken / "open_clip_model.safetensors").unlink()
    assert error("--reward_model", broken)[0] == "reward_model"
    (tmp_path / "rewards.json").write_text(json.dumps({"clip": {"model": str(broken)}}))
    second = ("--reward", "embedded-verifier,clip", "--reward_model", "embedded-verifier=embedded")
    named, line = error(*second, "--reward_config", tmp_path / "rewards.json")
    assert (named, line.startswith("clip: ")) == ("reward_config", True)


def test_architecture_with_a_pretrained_tag_passes(good):
    options = validate(parse([*good, "--reward_model", "ViT-L-14", "--reward_checkpoint", "openai"]))
    assert options.reward_checkpoint == "openai"


def test_prompts(error, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert error("--prompts", tmp_path / "absent.txt")[0] == "prompts"
    (tmp_path / "empty.txt").write_text("")
    assert error("--prompts", tmp_path / "empty.txt")[0] == "prompts"
    (tmp_path / "blank.txt").write_text(" \n\n")
    assert error("--prompts", tmp_path / "blank.txt")[0] == "prompts"
    (tmp_path / "latin.txt").write_bytes("ein grüner Kreis\n".encode("latin-1"))
    named, line = error("--prompts", tmp_path / "latin.txt")
    assert named == "prompts"
    assert "UTF-8" in line
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    assert error("--prompts", tmp_path / "bad.jsonl")[0] == "prompts"
    (tmp_path / "odd.csv").write_text("a\n")
    assert error("--prompts", tmp_path / "odd.csv")[0] == "prompts"
    pq.write_table(pa.table({"caption": ["a red circle"]}), tmp_path / "table.parquet")
    named, line = error("--prompts", tmp_path / "table.parquet", "--caption_column", "words")
    assert named == "caption_column"
    assert "choose one of: caption" in line
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "table.parquet").read_bytes()[:-20])
    assert error("--prompts", tmp_path / "cut.parquet", "--caption_column", "caption")[0] == "prompts"


@pytest.mark.parametrize("option", ["validation_prompt", "validation_prompts"])
def test_own_prompts_without_text(error, option):
    for words in ([""], ["a red circle", "  "]):
        assert error(f"--{option}", *words) == (
            "validation_prompt", "a prompt without any text; write one, or leave the option out"
        )  # fmt: skip


def test_deepspeed_that_contradicts_the_flags(error, good, tmp_path):
    path = tmp_path / "deepspeed.json"
    pairs = parse(good).groups_per_update
    cases = [
        ({"train_batch_size": pairs + 1}, "train_batch_size"),
        ({"train_micro_batch_size_per_gpu": 7}, "--train_batch_size"),
        ({"gradient_accumulation_steps": 99}, "gradient_accumulation_steps"),
        ({"gradient_clipping": 0.5}, "--max_grad_norm"),
        ({"bf16": {"enabled": True}}, "--mixed_precision"),
        ({"fp16": {"enabled": True}}, "--mixed_precision"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "--learning_rate"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.5, 0.99]}}}, "--adam_beta1"),
        ({"optimizer": {"type": "SGD"}}, "AdamW"),
        ({"optimizer": "AdamW"}, "no JSON object"),
        ({"scheduler": {"type": "WarmupLR"}}, "pass --lr_scheduler constant_with_warmup, or remove 'scheduler'"),
        ({"scheduler": {"type": "OneCycle"}}, "; remove 'scheduler' from the JSON"),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 9}}},
            "warmup_num_steps of the scheduler is 9",
        ),
        ({"scheduler": {"params": 9}}, "params of the scheduler is 9"),
        ({"scheduler": "WarmupLR"}, "scheduler is no JSON object"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "ZeRO 3 alone"),
        ({"zero_optimization": {"stage": 4}}, "use 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "use 0, 1, 2 or 3"),
        ([], "no JSON object"),
    ]
    for config, says in cases:
        path.write_text(json.dumps(config))
        named, line = error("--deepspeed_config", path)
        assert named == "deepspeed_config", config
        assert says in line, (config, line)
    path.write_text("{")
    assert "not valid JSON" in error("--deepspeed_config", path)[1]
    assert error("--deepspeed_config", tmp_path / "absent.json")[0] == "deepspeed_config"
    path.write_text(json.dumps({"train_batch_size": pairs, "optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}}))
    validate(parse([*good, "--deepspeed_config", str(path), "--learning_rate", "3e-5"]))


def test_more_learners_than_cpus_or_gpus(error, good, monkeypatch):
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    fits = ["--prompts_per_update", "12", "--timesteps_per_rollout", "1", "--train_batch_size", "1"]
    named, line = error(*fits, "--num_learners", "3")
    assert named == "num_learners"
    assert "this machine has 2 CPUs" in line
    assert "pass at most 2" in line
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    named, line = error(*fits, "--num_learners", "2", "--use_gpu", "auto")
    assert named == "num_learners"
    assert "this machine has 1 GPU;" in line
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    assert error("--use_gpu", "yes")[0] == "use_gpu"
    # a cluster may have more than this machine: the driver asks it
    joined = validate(parse([*good, *fits, "--num_learners", "3", "--use_gpu", "auto", "--ray_address", "auto"]))
    assert joined.deepspeed_config is None
    assert joined.use_gpu == "auto"


def test_output_folder(error, tmp_path):
    run = tmp_path / "other"
    run.mkdir()
    (run / "config.json").write_text("{}")
    named, line = error("--output_dir", run)
    assert named == "output_dir"
    assert "belongs to another run" in line
    assert "--resume_from_checkpoint latest" in line
    (tmp_path / "file").write_text("")
    assert "is a file" in error("--output_dir", tmp_path / "file")[1]
    assert "is a file" in error("--output_dir", tmp_path / "file" / "deeper" / "run")[1]
    if Path("/proc/self").is_dir():  # nobody, not even root, makes files there
        assert error("--output_dir", "/proc/self/run")[0] == "output_dir"


def test_an_address_that_cannot_be_used(error, good, s3, tmp_path, monkeypatch):
    """By a real server: no such bucket, a key that it does not know, a run of somebody else's."""
    option, line = error("--output_dir", "s3://nobody/run")
    assert option == "output_dir"
    assert "cannot write to s3://nobody/run (NO_SUCH_BUCKET: The specified bucket does not exist)" in line
    assert "from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    s3.check_keys("0")
    line = error("--output_dir", "s3://bucket/run")[1]
    assert "cannot write to s3://bucket/run (INVALID_ACCESS_KEY_ID" in line
    assert not [secret for secret in s3.environment.values() if secret in line]
    s3.check_keys("inf")
    options = validate(parse([*good, "--output_dir", "s3://bucket/run"]))
    assert (options.output_dir, options.local_dir) == ("s3://bucket/run", "runs/run")
    assert s3.files() == {}  # what was tried is gone again
    assert not (tmp_path / "runs").exists()
    s3.client.put_object(Bucket="bucket", Key="run/config.json", Body=b"{}")
    assert "s3://bucket/run belongs to another run; pass another" in error("--output_dir", "s3://bucket/run")[1]
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "config.json").write_text("{}")
    assert error("--output_dir", "s3://bucket/new")[0] == "local_dir"


@pytest.mark.parametrize("job", ["compare", "trials", "search", "sweep", "capacity"])
def test_only_runs_are_copied_to_an_address(job, capsys):
    from importlib import import_module

    assert import_module(f"rayjobs.{job}").main(["--output_dir", "s3://s3cret@bucket/x"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{job}: error: --output_dir: s3://bucket/x is an address, and this job writes to a folder")
    assert "mount storage that every node sees" in line


def test_default_output_folder_is_new_each_time(good, tmp_path):
    argv = good[: good.index("--output_dir")]
    first = validate(parse(argv)).output_dir
    assert Path(first).parent == Path("runs")
    for _ in range(2):
        Path(validate(parse(argv)).output_dir).mkdir(parents=True)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_resume(error, good, tmp_path):
    name = "resume_from_checkpoint"
    run = tmp_path / "run"
    assert error(f"--{name}", "latest")[0] == name  # no such folder
    run.mkdir()
    assert "is no run folder" in error(f"--{name}", "latest")[1]
    (run / "checkpoints").mkdir()
    options = validate(parse([*good, "--branches", "4"]))
    (run / "config.json").write_text(json.dumps(options.config()))
    assert "has no checkpoint" in error(f"--{name}", "latest")[1]
    for update in (9, 10):
        checkpoint = checkpoints.path_for(run / "checkpoints", update)
        checkpoints.partial_for(run / "checkpoints", update).mkdir()
        checkpoints.complete(run / "checkpoints", checkpoints.TrainerState(update, 1, []), [])
    checkpoints.partial_for(run / "checkpoints", 11).mkdir()
    resumed = validate(parse([*good, f"--{name}", "latest"]))
    assert resumed.resume_from_checkpoint == str(checkpoint)
    assert Path(resumed.output_dir) == run
    older = str(checkpoints.path_for(run / "checkpoints", 9))
    without_folder = good[: good.index("--output_dir")]
    named = validate(parse([*without_folder, f"--{name}", older]))
    assert named.resume_from_checkpoint == older
    assert Path(named.output_dir) == run
    assert error(f"--{name}", checkpoints.partial_for(run / "checkpoints", 11))[0] == name
    assert error(f"--{name}", older, "--output_dir", tmp_path / "elsewhere")[0] == "output_dir"


def test_resume_with_another_configuration_names_the_option(error, good, tmp_path):
    run = tmp_path / "run"
    checkpoints.partial_for(run / "checkpoints", 1).mkdir(parents=True)
    checkpoints.complete(run / "checkpoints", checkpoints.TrainerState(1, 1, []), [])
    good = [*good, "--lr_scheduler", "constant"]
    config = validate(parse([*good, "--output_dir", str(tmp_path / "new")])).config()
    (run / "config.json").write_text(json.dumps(config))
    resume = ["--resume_from_checkpoint", "latest"]
    resume += ["--lr_scheduler", "constant"]
    named, line = error(*resume, "--beta", "77")
    assert named == "beta"
    assert "pass --beta " in line
    assert error(*resume, "--seed", "9")[0] == "seed"
    validate(parse([*good, *resume, "--num_rollout_actors", "1", "--max_train_steps", "99", "--max_failures", "0"]))
    linear = config | {"lr_scheduler": "linear"}
    (run / "config.json").write_text(json.dumps(linear))
    assert error(*resume, "--lr_scheduler", "linear", "--max_train_steps", "999")[0] == "max_train_steps"
    (run / "config.json").write_text(json.dumps(config | {"lr_scheduler": "cosine_with_restarts"}))
    assert error(*resume, "--lr_scheduler", "cosine_with_restarts", "--lr_num_cycles", "2")[0] == "lr_num_cycles"
    (run / "config.json").write_text("{")
    assert error(*resume)[0] == "resume_from_checkpoint"


def test_config_file(error, tmp_path):
    assert error("--config", tmp_path / "absent.json")[0] == "config"
    path = tmp_path / "options.json"
    for text in ("{", "[]", '{"branchs": 3}'):
        path.write_text(text)
        assert error("--config", path)[0] == "config"
    assert "did you mean --branches?" in error("--config", path)[1]
    path.write_text('{"branches": 1}')
    named, line = error("--config", path)
    assert named == "branches"
    assert str(path) in line
    (tmp_path / "options.yaml").write_text("branches: [1\n")
    assert error("--config", tmp_path / "options.yaml")[0] == "config"


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["--beta", "-1"], "beta"),
        (["--pretrained_model_name_or_path", "/nowhere/at/all"], "pretrained_model_name_or_path"),
        (["--prompts", "absent.parquet"], "prompts"),
        (["--deepspeed_config", "absent.json"], "deepspeed_config"),
        (["--output_dir", "/proc/self/run"], "output_dir"),
    ],
)
def test_as_a_user_runs_it(good, tmp_path, argv, option):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = [sys.executable, "-X", "importtime", str(ROOT / "rayjobs" / "rlhf.py"), *good, *argv]
    shown = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=environment)
    lines = shown.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert len(said) == 1
    assert said[0].startswith(f"rlhf: error: --{option}: ")
    assert "rayjobs.validation" in imported
    assert not imported & {"torch", "ray", "diffusers", "transformers", "deepspeed", "open_clip"}


def test_guidance_of_a_model_that_knows_none_is_refused(error, good, schnell):
    model = ["--pretrained_model_name_or_path", schnell]
    option, reason = error(*model)  # 3 is among the scales of the evaluation by default
    assert option == "eval_guidance_scales"
    assert "is 3" in reason
    assert error(*model, "--guidance_scale", 2)[0] == "guidance_scale"
    unguided = [*model, "--eval_guidance_scales", "1"]
    assert error(*unguided, "--loss_guidance_scale", 2)[0] == "loss_guidance_scale"
    assert validate(parse([*good, *map(str, unguided)])).resolution == 32  # by the VAE, as its transformer does not say
    assert "multiples of 4 pixels; pass 12" in error(*unguided, "--resolution", 14)[1]
    config = {"guidance_embeds": False, "in_channels": 16, "pos_embed_max_size": 16}
    (schnell / "transformer" / "config.json").write_text(json.dumps(config))
    assert "multiples of 4 pixels up to 64; pass 64" in error(*unguided, "--resolution", 96)[1]


def test_a_model_of_an_unknown_family_is_told_which_there_are(error, models, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(models / "pipeline", folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    option, reason = error("--pretrained_model_name_or_path", folder)
    assert option == "pretrained_model_name_or_path"
    assert all(name in reason for name in ["KandinskyPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
