"""Flags of the scripts that users come from: diffusers' `train_text_to_image_sdxl.py` and the paper's public code.

Those that mean the same are options of ours under the same name. The rest stands here: names that are read as one of
our options, those that ask for what is done anyway, and names and values that are refused, each with the reason and
what to do instead; all that one command line has are named together. The same goes for keys of the file that
`--config` names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rayjobs.errors import OptionError, refuse_together
from rayjobs.options import JobOptions
from rayjobs.options.declaring import Options

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

TEXTS = {"validation_prompts": "validation_prompt"}
"""Numbers here that are texts in diffusers' scripts, and the option that has the texts here."""

ANYWAY = {"center_crop": ("", "true"), "image_interpolation_mode": ("lanczos",), "timestep_bias_strategy": ("none",)}
"""Flags that ask, with these values, for what is done anyway ("": alone); they are read and change nothing."""

NO_EPOCHS = "examples are drawn one update at a time and a run has no epochs"
BIAS = "every method draws its timesteps evenly, one from each equal part of those that it learns at"
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
    "center_crop": ("images are always cropped at their centre", "leave it out"),
    "random_flip": (
        "a mirrored image contradicts captions that say left or right, and an example is the same whenever it is read",
        "leave it out",
    ),
    "image_interpolation_mode": (
        "images are resized with Lanczos' filter, the script's own default, and no other",
        "pass lanczos, or leave it out",
    ),
    "num_train_epochs": (NO_EPOCHS, "pass --max_train_steps"),
    "validation_epochs": (NO_EPOCHS, "pass --validation_steps, in updates"),
    "scale_lr": (
        "an update is a mean over all its prompts, whatever the number of devices, so there is nothing to scale by",
        "leave it out, and choose --learning_rate for --prompts_per_update",
    ),
    "timestep_bias_strategy": (BIAS, "leave it out"),
    "timestep_bias_multiplier": (BIAS, "leave it out"),
    "timestep_bias_begin": (BIAS, "leave it out"),
    "timestep_bias_end": (BIAS, "leave it out"),
    "timestep_bias_portion": (BIAS, "leave it out"),
    "prediction_type": (
        "what a model predicts stands in its scheduler's configuration, and training it to predict something else "
        "would start from a model that does not fit",
        "leave it out",
    ),
    "noise_offset": (
        "all noise is standard normal, as that which a sampler starts from, and an offset would train the model on "
        "noise that it is never given when it draws", "leave it out",
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

NO_ADAPTER = "a tracker needs an adapter of its own (rayjobs/tracking/), and this one has none"
REFUSED_VALUES: dict[str, dict[str, tuple[str, str]]] = {
    "mixed_precision": {
        "fp16": (
            "float16 overflows in SDXL's own VAE and in losses that nobody scales, where bfloat16 has float32's range",
            "pass bf16 or no",
        )
    },
    "report_to": dict.fromkeys(
        ("aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio"),
        (NO_ADAPTER, "choose among none, tensorboard, wandb, mlflow, all"),
    ),
    "lr_scheduler": {
        "piecewise_constant": (
            "it needs a list of rates and updates, for which the script itself has no flag", "choose another one"
        )
    },
}  # fmt: skip
"""Name of an option of ours → value that it has in diffusers and not here → why, and what to do."""


def translate(argv: Sequence[str], model: type[Options]) -> list[str]:
    """Write a command line's familiar flags as ours.

    Args:
        argv: Arguments without the program's name.
        model: What the job can be told.

    Returns:
        The arguments, with aliases replaced and without flags that change nothing; two spellings of one option are the
        same flag twice, of which the last one counts.

    Raises:
        OptionError: If flags are among them that do not apply; it names all of them.
    """  # noqa: DOC502
    flags = _flags(argv)
    _check(flags, model)
    given = iter(flags)
    written, kept = [], True
    for word in argv:
        if word.startswith("--"):
            name, separator, value = word.removeprefix("--").partition("=")
            kept = name in model.model_fields or name not in ANYWAY
            word = f"--{_known_name(name, next(given)[1], model)}{separator}{value}"
        if kept:
            written.append(word)
    return written


def translate_file(values: Mapping[Any, Any], model: type[Options]) -> dict[str, Any]:
    """Write the keys of a configuration file as ours.

    Args:
        values: What the file says.
        model: What the job can be told.

    Returns:
        The same, with aliases replaced and without keys that change nothing.

    Raises:
        OptionError: If keys are among them that do not apply; it names all of them.
    """  # noqa: DOC502
    named = {str(name): value for name, value in values.items()}
    _check(((name, _words(value)) for name, value in named.items()), model)
    return {
        _known_name(name, _words(value), model): value
        for name, value in named.items()
        if name in model.model_fields or name not in ANYWAY
    }


def _flags(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The flags of a command line, each with the words that belong to it."""
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            name, separator, value = word.removeprefix("--").partition("=")
            found.append((name, [value] if separator else []))
        elif found:
            found[-1][1].append(word)
    return found


def _words(value: Any) -> list[str]:
    """A value of a file as a command line would have it."""
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def _check(given: Iterable[tuple[str, Sequence[str]]], model: type[Options]) -> None:
    """Refuse what does not apply, all of it in one message."""
    found = (_refusal(name, words, model) for name, words in given)
    refuse_together([error for error in found if error is not None])


def _refusal(name: str, words: Sequence[str], model: type[Options]) -> OptionError | None:
    """Why a flag or its value does not apply; `None` if it does, or is unknown."""
    if name in model.model_fields:
        values = [value.strip() for word in words for value in word.split(",")]
        known = REFUSED_VALUES.get(name, {})
        reason = next(((value, *known[value]) for value in values if value in known), None)
        if reason is None:
            return None
        value, problem, remedy = reason
        if value == "fp16" and issubclass(model, JobOptions) and not model.option_class.bf16:
            remedy = "pass no"
        return OptionError(name, f"unknown value '{value}': {problem}", remedy)
    if name in REFUSED and " ".join(words) not in ANYWAY.get(name, ()):
        problem, remedy = REFUSED[name]
        if problem is BIAS and "snr_gamma" in model.model_fields:
            remedy += "; --snr_gamma weighs timesteps in the loss"
        return OptionError(name, problem, remedy)
    if name in ALIASES and ALIASES[name] not in model.model_fields:
        return OptionError(name, f"stands for --{ALIASES[name]}, which this method does not have", "leave it out")
    return None


def _known_name(name: str, words: Sequence[str], model: type[Options]) -> str:
    """The name that an alias stands for, or a name that has texts where ours has a number; any other as it is."""
    if TEXTS.get(name) in model.model_fields and words and not (len(words) == 1 and _is_number(words[0])):
        return TEXTS[name]
    return name if name in model.model_fields else ALIASES.get(name, name)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word in ("true", "false")  # of a file, and no text either
    return True


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
