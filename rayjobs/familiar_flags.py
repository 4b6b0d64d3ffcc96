"""Flags of the scripts that users come from: diffusers' `train_text_to_image_sdxl.py` and the paper's public code.

Those that mean the same are options of ours under the same name. The rest stands here: names that are read as one of
our options, and names that are refused, each with the reason and what to do instead. The same goes for keys of the
file that `--config` names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rayjobs.declaring import Options
from rayjobs.errors import OptionError

ALIASES = {
    # the paper's public code
    "num_noisy_latents": "branches",
    "trajectory_nums": "branch_steps",
    "beta_dpo": "beta",
    "infer_steps": "rollout_steps",
}
"""Read as our option of the same meaning."""

REWARDS = {"clip": "clip", "image_reward": "image_reward", "compositional": "compositional", "mllm": "grader"}
"""What the paper's public code lets `--reward_model` be, and the name of that reward here. Ours is a folder or hub id,
so these four words, which no model is called, are read as `--reward`."""

NO_EPOCHS = "prompts are drawn one update at a time and a run has no epochs"
BIAS = "methods draw their timesteps from the sampler's own grid, one from each equal part of it"
REFUSED: dict[str, tuple[str, str]] = {
    "hub_token": (
        "a token on a command line can be read by everybody on the machine and would end up in files",
        "leave it out and set HF_TOKEN in the environment",
    ),
    "api_key": (
        "a key on a command line can be read by everybody on the machine and would end up in files",
        "leave it out and set OPENAI_API_KEY in the environment",
    ),
    "variant": (
        "training starts from the weights as published, and a half-precision variant holds them rounded",
        "leave it out; --mixed_precision says what is computed in",
    ),
    "cache_dir": (
        "downloads of models and data are kept in one place for every process on a node",
        "leave it out and set HF_HOME in the environment",
    ),
    "pretrained_vae_model_name_or_path": (
        "the VAE is the pipeline's own, so that what is saved draws what was trained",
        "save the pipeline once with that VAE (from_pretrained(…, vae=…).save_pretrained(FOLDER)) and pass FOLDER",
    ),
    "center_crop": ("images are always cropped at their centre", "leave it out"),
    "random_flip": (
        "a mirrored image contradicts captions that say left or right, and an example is the same whenever it is read",
        "leave it out",
    ),
    "image_interpolation_mode": ("images are resized with Lanczos' filter, the script's own default", "leave it out"),
    "num_train_epochs": (NO_EPOCHS, "pass --max_train_steps"),
    "validation_epochs": (NO_EPOCHS, "pass --validation_steps, in updates"),
    "validation_prompt": (
        "a run looks at held-out prompts of a benchmark, whose noise is fixed, so that looks can be compared",
        "leave it out; --validation_steps and --validation_prompts say how often and at how many",
    ),
    "num_validation_images": (
        "a look draws one image for each of its held-out prompts", "pass --validation_prompts",
    ),
    "scale_lr": (
        "an update is a mean over all its prompts, whatever the number of devices, so there is nothing to scale by",
        "leave it out, and choose --learning_rate for --prompts_per_update",
    ),
    "timestep_bias_strategy": (BIAS, "leave it out; --snr_gamma weighs timesteps in the loss"),
    "timestep_bias_multiplier": (BIAS, "leave it out; --snr_gamma weighs timesteps in the loss"),
    "timestep_bias_begin": (BIAS, "leave it out; --snr_gamma weighs timesteps in the loss"),
    "timestep_bias_end": (BIAS, "leave it out; --snr_gamma weighs timesteps in the loss"),
    "timestep_bias_portion": (BIAS, "leave it out; --snr_gamma weighs timesteps in the loss"),
    "prediction_type": (
        "what a model predicts stands in its scheduler's configuration, and training it to predict something else "
        "would start from a model that does not fit",
        "leave it out",
    ),
    "noise_offset": (
        "noise is that of the sampler whose trajectories are sharpened, and an offset would take them off its path",
        "leave it out",
    ),
    "dataloader_num_workers": (
        "there is no data loader: rollout actors read their examples themselves", "pass --num_rollout_actors",
    ),
    "local_rank": ("Ray Train starts the learners and tells each its rank", "pass --num_learners"),
    "enable_xformers_memory_efficient_attention": (
        "attention is torch's own, which is fused and as frugal", "leave it out",
    ),
    "enable_npu_flash_attention": ("runs are on CPUs and NVIDIA GPUs", "leave it out"),
}  # fmt: skip
"""Name → why it does not apply, and what to do."""


def translate(argv: Sequence[str], model: type[Options]) -> list[str]:
    """Write a command line's familiar flags as ours.

    Args:
        argv: Arguments without the program's name.
        model: What the job can be told.

    Returns:
        The arguments, with aliases replaced; two spellings of one option are the same flag twice, of which the last
        one counts.

    Raises:
        OptionError: If a flag is one that does not apply.
    """  # noqa: DOC502
    written = []
    for word in argv:
        name, separator, value = word.removeprefix("--").partition("=")
        written.append(f"--{known_name(name, model)}{separator}{value}" if word.startswith("--") else word)
    return written


def known_name(name: str, model: type[Options]) -> str:
    """Our name of an option.

    Args:
        name: A flag without dashes, or a key of a configuration file.
        model: What the job can be told.

    Returns:
        The name that an alias stands for; any other name as it is.

    Raises:
        OptionError: If it is one that does not apply, or stands for an option that this method does not have.
    """
    if name in model.model_fields:
        return name
    if name in REFUSED:
        raise OptionError(name, *REFUSED[name])
    if name in ALIASES and ALIASES[name] not in model.model_fields:
        raise OptionError(name, f"stands for --{ALIASES[name]}, which this method does not have", "leave it out")
    return ALIASES.get(name, name)


def settle_reward(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the public code's `--reward_model NAME` and `--base_url URL` as the options that they are here.

    Args:
        values: Options by name, from file and command line.

    Returns:
        The options without `base_url`, and with `reward_model` only where it names a model.

    Raises:
        OptionError: If they contradict the other options.
    """
    settled = dict(values)
    asked = REWARDS.get(str(settled.get("reward_model")))
    if asked is not None:
        word = settled.pop("reward_model")
        if settled.setdefault("reward", asked) != asked:
            raise OptionError(
                "reward_model", f"'{word}' names the reward {asked}, and --reward is {settled['reward']}",
                "pass a folder or hub id, or leave it out",
            )  # fmt: skip
    url = settled.pop("base_url", None)
    if url is None:
        return settled
    if settled.get("reward") != "grader":
        raise OptionError("base_url", "only the grader has an endpoint", "pass --reward grader, or leave it out")
    if settled.get("reward_config") is not None:
        raise OptionError("base_url", "stands in the file of --reward_config", "write it there, under options")
    return settled | {"reward_config": {"grader": {"options": {"base_url": url}}}}
