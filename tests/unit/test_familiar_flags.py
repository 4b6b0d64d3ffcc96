"""Every flag of the scripts that users come from is an option of ours, read as one, or refused with the reason."""

import json
import re
import shlex
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.familiar_flags import ALIASES, ANYWAY, REFUSED, REWARDS
from rayjobs.options import options_class
from rayjobs.validation import validate
from sharpening.methods import METHODS
from tests.unit.test_bad_input import models

__all__ = ["models"]  # fixture

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
        for value in ANYWAY.get(flag, ()):
            assert parse([f"--{flag}", *([value] if value else []), "--seed", "3"]) == parse(["--seed", "3"])
    else:
        assert flag in PENDING | {"base_url"}, f"nothing is said about --{flag}"


def test_the_table_has_nothing_else():
    assert set(REFUSED) | set(ALIASES) <= {*DIFFUSERS, *PUBLIC_CODE}
    assert set(ANYWAY) <= set(REFUSED)
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
        (
            "--report_to wandb,comet_ml",
            "--report_to: unknown value 'comet_ml': a tracker needs an adapter of its own (rayjobs/tracking/), and "
            "this one has none; choose among none, tensorboard, wandb",
        ),
        ("--report_to nobody", "--report_to: unknown value 'nobody'; choose one of none, tensorboard, wandb"),
        ("--report_to none wandb", "--report_to: none goes with no other tracker; leave it out"),
        ("--logging_dir /tmp/logs", "--logging_dir: must be inside the run folder; pass a relative name"),
        ("--logging_dir ../logs", "--logging_dir: must be inside the run folder; pass a relative name"),
        (
            "--mixed_precision fp16",
            "--mixed_precision: unknown value 'fp16': float16 overflows in SDXL's own VAE and in losses that nobody "
            "scales, where bfloat16 has float32's range; pass bf16 or no",
        ),
        ("--lr_scheduler piecewise_constant", "--lr_scheduler: unknown value 'piecewise_constant': it needs a list of"),
        ("--center_crop --image_interpolation_mode bicubic", "--image_interpolation_mode: images are resized with Lan"),
        ("--timestep_bias_strategy later", "--timestep_bias_strategy: every method draws its timesteps evenly"),
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


TWO = ("a red circle, blurred", "a blue cross")


@pytest.mark.parametrize(
    ("argv", "texts", "number"),
    [
        (["--validation_prompt", TWO[0]], TWO[:1], 48),
        (["--validation_prompt", *TWO], TWO, 48),
        (["--validation_prompts", *TWO], TWO, 48),
        ([f"--validation_prompts={TWO[0]}"], TWO[:1], 48),
        (["--validation_prompts", "12"], (), 12),
        (["--validation_prompts=12", "--validation_prompts", *TWO], TWO, 12),
        (["--validation_prompts", *TWO, "--validation_prompts", "12", "--validation_prompt", " 7 "], ("7",), 12),
        (["--validation_prompts", "7", "8"], ("7", "8"), 48),
    ],
)
def test_own_prompts_are_named_as_in_diffusers_scripts(argv, texts, number):
    options = parse(argv)
    assert (options.validation_prompt, options.validation_prompts) == (texts, number)


@pytest.mark.parametrize(
    ("values", "texts", "number"),
    [
        ({"validation_prompt": TWO[0]}, TWO[:1], 48),
        ({"validation_prompts": TWO[0]}, TWO[:1], 48),
        ({"validation_prompts": list(TWO)}, TWO, 48),
        ({"validation_prompts": 12, "validation_prompt": list(TWO)}, TWO, 12),
        ({"validation_prompts": "12"}, (), 12),
    ],
)
def test_a_file_names_own_prompts_in_the_same_ways(tmp_path, values, texts, number):
    (tmp_path / "given.json").write_text(json.dumps(values))
    options = parse(["--config", str(tmp_path / "given.json")])
    assert (options.validation_prompt, options.validation_prompts) == (texts, number)
    (tmp_path / "again.json").write_text(json.dumps(options.config()))
    assert parse(["--config", str(tmp_path / "again.json")]) == options


@pytest.mark.parametrize("value", [7, [7], [TWO[0], None], True])
def test_a_prompt_in_a_file_is_a_text(tmp_path, value):
    (tmp_path / "given.json").write_text(json.dumps({"validation_prompt": value}))
    said = error(["--config", str(tmp_path / "given.json")])
    assert said.startswith("--validation_prompt: a prompt is a text, and ")
    assert said.endswith(" is none (in " + str(tmp_path / "given.json") + "); put it in quotes")


@pytest.mark.parametrize("name", ["hub_token", "api_key", "noise_offset"])
def test_a_file_cannot_have_them_either(tmp_path, name):
    (tmp_path / "given.toml").write_text(f'{name} = "hf_secret"\n')
    said = error(["--config", str(tmp_path / "given.toml")])
    assert said.startswith(f"--{name}: {REFUSED[name][0]}")
    assert "hf_secret" not in said


def test_a_broken_toml_file_is_named(tmp_path):
    (tmp_path / "given.toml").write_text("branches = = 3\n")
    assert "given.toml is not valid TOML" in error(["--config", str(tmp_path / "given.toml")])


def test_a_file_asks_for_what_is_done_anyway(tmp_path):
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"center_crop": True, "image_interpolation_mode": "lanczos", "seed": 3}))
    assert parse(["--config", str(given)]) == parse(["--seed", "3"])
    given.write_text(json.dumps({"center_crop": False, "noise_offset": 0.1, "report_to": ["wandb", "aim"]}))
    assert re.findall(r"--(\w+): ", error(["--config", str(given)])) == ["center_crop", "noise_offset", "report_to"]


def test_remedies_are_those_of_the_method():
    assert error(["--timestep_bias_begin", "3"], "dpo").endswith("; --snr_gamma weighs timesteps in the loss")
    assert error(["--timestep_bias_begin", "3"], "ddpo").endswith("learns at; leave it out")
    assert error(["--mixed_precision", "fp16"], "ddpo").endswith("; pass no")


def test_unknown_options_are_named_together():
    said = error(["--image_column", "image", "--center_crop", "--bonbon", "3", "--dolce=4"])
    assert re.findall(r"--(\w+): ", said) == ["image_column", "bonbon"]
    assert "(likewise --dolce)" in said


README = """
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --pretrained_vae_model_name_or_path=$VAE_NAME \\
  --dataset_name=$DATASET_NAME \\
  --enable_xformers_memory_efficient_attention \\
  --resolution=512 --center_crop --random_flip \\
  --proportion_empty_prompts=0.2 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 --gradient_checkpointing \\
  --max_train_steps=10000 \\
  --use_8bit_adam \\
  --learning_rate=1e-06 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --mixed_precision="fp16" \\
  --report_to="wandb" \\
  --validation_prompt="a cute Sundar Pichai creature" --validation_epochs 5 \\
  --checkpointing_steps=5000 \\
  --output_dir="sdxl-pokemon-model" \\
  --push_to_hub
"""
"""The flags of the command in diffusers' `examples/text_to_image/README_sdxl.md`, section Training."""
WITHOUT_MEANING = [
    "enable_xformers_memory_efficient_attention", "random_flip", "mixed_precision", "validation_epochs",
]  # fmt: skip


def test_the_command_of_diffusers_readme(models, tmp_path, monkeypatch):
    """Everything that applies goes through as it stands; the rest is named in one message."""
    buffer = BytesIO()
    Image.new("RGB", (20, 12)).save(buffer, "PNG")
    (tmp_path / "data").mkdir()
    rows = [{"image": {"bytes": buffer.getvalue(), "path": None}, "text": "a circle"}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    places = {"$MODEL_NAME": models / "pipeline", "$VAE_NAME": models / "pipeline" / "vae", "$DATASET_NAME": "data"}
    text = README.replace("\\\n", " ")
    for name, place in places.items():
        text = text.replace(name, str(place))
    said = error(shlex.split(text), "standard")
    assert re.findall(r"--(\w+): ", said) == WITHOUT_MEANING
    for name in WITHOUT_MEANING:
        text = re.sub(rf"--{name}\b[^-]*", "", text)
    # On this machine there may be no GPU for 8-bit AdamW; and it says how many examples make an update of 4 passes.
    argv = [*shlex.split(text.replace("--use_8bit_adam", "")), "--prompts_per_update", "1", "--use_gpu", "no"]
    options = validate(parse(argv, "finetune.py", ("standard",)))
    assert parse([*argv, "--use_8bit_adam"], "finetune.py", ("standard",)).use_8bit_adam
    assert (options.resolution, options.proportion_empty_prompts, options.train_batch_size) == (512, 0.2, 1)
    assert (options.gradient_accumulation_steps, options.gradient_checkpointing) == (4, True)
    assert (options.max_train_steps, options.learning_rate, options.lr_scheduler) == (10000, 1e-6, "constant")
    assert (options.trackers, options.checkpointing_steps, options.push_to_hub) == (("wandb",), 5000, True)
    own = (options.validation_prompt, options.num_validation_images)
    assert own == (("a cute Sundar Pichai creature",), 4)  # as many as the script's own default
    assert Path(str(options.output_dir)).name == "sdxl-pokemon-model"
