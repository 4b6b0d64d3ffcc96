"""Every flag of the scripts that users come from is an option of ours, read as one, or refused with the reason."""

import json

import pytest

from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.familiar_flags import ALIASES, REFUSED, REWARDS
from rayjobs.options import options_class
from sharpening.methods import METHODS

IN_DIFFUSERS = """
pretrained_model_name_or_path pretrained_vae_model_name_or_path revision variant dataset_name dataset_config_name
train_data_dir image_column caption_column validation_prompt num_validation_images validation_epochs max_train_samples
proportion_empty_prompts output_dir cache_dir seed resolution center_crop random_flip train_batch_size num_train_epochs
max_train_steps checkpointing_steps checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps
gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps timestep_bias_strategy
timestep_bias_multiplier timestep_bias_begin timestep_bias_end timestep_bias_portion snr_gamma use_ema allow_tf32
dataloader_num_workers use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub
hub_token prediction_type hub_model_id logging_dir report_to mixed_precision local_rank enable_npu_flash_attention
enable_xformers_memory_efficient_attention noise_offset image_interpolation_mode
"""
"""All of `examples/text_to_image/train_text_to_image_sdxl.py` of diffusers at commit 58eb52c0803e."""
IN_PUBLIC_CODE = "num_noisy_latents trajectory_nums beta_dpo infer_steps reward_model base_url api_key validation_steps"
"""What the paper's public code adds to them."""
PENDING: set[str] = set()
"""Options that are not there yet; this set must become empty."""

DIFFUSERS, PUBLIC_CODE = IN_DIFFUSERS.split(), IN_PUBLIC_CODE.split()
OWN = {name: set(options_class(name).model_fields) for name in METHODS}
VALUES = {
    "report_to": "tensorboard", "resolution": "512", "lr_scheduler": "constant", "mixed_precision": "bf16",
    "hub_model_id": "me/model", "logging_dir": "logs", "resume_from_checkpoint": "latest", "seed": "42",
    "max_grad_norm": "1", "adam_beta1": "0.9", "adam_beta2": "0.999", "adam_epsilon": "1e-08", "snr_gamma": "5.0",
}  # fmt: skip
SWITCHES = {
    "allow_tf32",
    "push_to_hub",
    "gradient_checkpointing",
    "use_ema",
    "use_8bit_adam",
}


def error(argv: list[str], method: str = "rlhf") -> str:
    with pytest.raises(OptionError) as caught:
        parse(argv, "finetune.py", (method,))
    return str(caught.value)


@pytest.mark.parametrize("flag", DIFFUSERS + PUBLIC_CODE)
def test_a_familiar_flag_is_accepted_read_as_another_or_refused(flag):
    owners = [method for method, names in OWN.items() if flag in names]
    if owners:
        assert flag not in REFUSED, f"{flag} is an option now: take it out of REFUSED"
        assert flag not in ALIASES
        assert flag not in PENDING, f"{flag} is an option now: take it out of PENDING"
        value = [] if flag in SWITCHES else [VALUES.get(flag, "1")]
        options = parse([f"--{flag}", *value], "finetune.py", (owners[0],))
        told = getattr(options, flag)
        assert told == pytest.approx(float(value[0])) if isinstance(told, float) else told
    elif flag in ALIASES:
        assert flag not in REFUSED
        options = parse([f"--{flag}", "3"], "finetune.py", ("rlhf",))
        assert getattr(options, ALIASES[flag]) == 3
    elif flag in REFUSED:
        for argv in ([f"--{flag}", "hf_secret"], [f"--{flag}=hf_secret"]):
            said = error(argv)
            assert said.startswith(f"--{flag}: {REFUSED[flag][0]}; {REFUSED[flag][1]}")
            assert "hf_secret" not in said
    else:
        assert flag in PENDING | {"base_url"}, f"nothing is said about --{flag}"


def test_the_table_has_nothing_else():
    assert set(REFUSED) | set(ALIASES) <= {*DIFFUSERS, *PUBLIC_CODE}
    assert not PENDING - {*DIFFUSERS}
    assert set(ALIASES.values()) <= OWN["rlhf"]


def test_what_another_method_has_is_refused_with_their_names():
    assert error(["--image_column", "image"]) == (
        "--image_column: no option of this method; leave it out; those that have it are sft, standard"
    )
    assert "stands for --beta, which this method does not have" in error(["--beta_dpo", "3"], "sft")


def test_rewards_as_the_public_code_names_them(tmp_path):
    for word, reward in REWARDS.items():
        options = parse(["--reward_model", word])
        assert (options.reward, options.reward_model) == (reward, "embedded")
    options = parse(["--reward_model", "mllm", "--base_url", "http://127.0.0.1:8001/v1"])
    assert options.reward_config == {"grader": {"options": {"base_url": "http://127.0.0.1:8001/v1"}}}
    assert parse(["--reward_model", "some/folder"]).reward_model == "some/folder"
    (tmp_path / "given.json").write_text(json.dumps({"reward_model": "mllm", "num_noisy_latents": 6}))
    options = parse(["--config", str(tmp_path / "given.json")])
    assert (options.reward, options.branches) == ("grader", 6)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--reward_model mllm --reward clip", "--reward_model: 'mllm' names the reward grader, and --reward is clip; "),
        ("--base_url http://127.0.0.1/v1", "--base_url: only the grader has an endpoint; pass --reward grader"),
        (
            "--reward grader --reward_config a.yaml --base_url http://127.0.0.1/v1",
            "--base_url: stands in the file of --reward_config; write it there",
        ),
        ("--report_to comet_ml", "--report_to: unknown value 'comet_ml'; choose one of none, tensorboard, wandb"),
        ("--report_to none wandb", "--report_to: none goes with no other tracker; leave it out"),
        ("--logging_dir /tmp/logs", "--logging_dir: must be inside the run folder; pass a relative name"),
        ("--logging_dir ../logs", "--logging_dir: must be inside the run folder; pass a relative name"),
        ("--mixed_precision fp16", "--mixed_precision: unknown value 'fp16'; choose one of no, bf16"),
    ],
)
def test_values_that_cannot_be_are_refused(argv, says):
    assert error(argv.split()).startswith(says)


def test_trackers_are_named_in_several_ways():
    assert parse([]).trackers == ()
    assert parse(["--report_to", "wandb"]).trackers == ("wandb",)
    assert parse(["--report_to", "tensorboard,mlflow"]).trackers == ("tensorboard", "mlflow")
    assert parse(["--report_to", "mlflow", "wandb", "mlflow"]).trackers == ("mlflow", "wandb")
    assert parse(["--report_to=all"]).trackers == ("tensorboard", "wandb", "mlflow")


@pytest.mark.parametrize("name", ["hub_token", "api_key", "noise_offset"])
def test_a_file_cannot_have_them_either(tmp_path, name):
    (tmp_path / "given.toml").write_text(f'{name} = "hf_secret"\n')
    said = error(["--config", str(tmp_path / "given.toml")])
    assert said.startswith(f"--{name}: {REFUSED[name][0]}")
    assert "hf_secret" not in said


def test_a_broken_toml_file_is_named(tmp_path):
    (tmp_path / "given.toml").write_text("branches = = 3\n")
    assert "given.toml is not valid TOML" in error(["--config", str(tmp_path / "given.toml")])
