"""DeepSpeed's JSON beside the flags: read it, refuse what contradicts them, fill in every 'auto'."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayjobs.errors import OptionError
from rayjobs.options import JobOptions

ROOT = Path(__file__).resolve().parent.parent
AUTO = "auto"
NAME = "deepspeed_config"
Key = tuple[str, ...]
AUTOMATIC: dict[Key, tuple[str, ...]] = {
    ("zero_optimization",): (
        "reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters",
        "stage3_param_persistence_threshold", "stage3_max_reuse_distance", "sub_group_size", "overlap_comm",
        "contiguous_gradients", "stage3_gather_16bit_weights_on_model_save",
    ),
    ("zero_optimization", "offload_optimizer"): ("device", "nvme_path", "pin_memory"),
    ("zero_optimization", "offload_param"): ("device", "nvme_path", "pin_memory"),
    ("fp16",): ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"),
    (): ("steps_per_print", "wall_clock_breakdown"),
}  # fmt: skip
"""Settings that configurations written for accelerate leave "auto", and no flag of ours decides."""
SCHEDULERS = {
    "WarmupLR": ("constant_with_warmup", "constant"),
    "WarmupDecayLR": ("linear",),
    "WarmupCosineLR": ("cosine",),
}
"""DeepSpeed's schedules, and the values of --lr_scheduler that have their shape, the usual one first."""


def default_config_path(device: str) -> str:
    """The configuration that the project ships for a device.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        The path of a JSON file, relative to the project: a submitted job runs from a copy, whose place changes.
    """
    return f"cluster/deepspeed_{'gpu' if device == 'cuda' else 'cpu'}.json"


def load_deepspeed(path: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration.

    Args:
        path: A JSON file; a relative path is looked up here, then in the project.

    Returns:
        Its contents.

    Raises:
        OptionError: If the file is absent, is no JSON or holds no object.
    """
    here = Path(path).expanduser()
    try:
        config = json.loads((here if here.exists() else ROOT / here).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            NAME, f"cannot read {path} ({error.strerror})", "pass a JSON file, such as those in cluster/"
        ) from error
    except ValueError as error:
        raise OptionError(NAME, f"{path} is not valid JSON ({error})", "correct the file") from error
    if not isinstance(config, dict):
        raise OptionError(NAME, f"{path} holds no JSON object", "start from one of the files in cluster/")
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """ZeRO's stage.

    Args:
        config: DeepSpeed's configuration.

    Returns:
        0 where it says none.
    """
    return int(_get(config, ("zero_optimization", "stage")) or 0)


def _flag_values(options: JobOptions) -> Iterator[tuple[Key, Any, str]]:
    """Settings that both the JSON and the flags have: where, the flags' value, and which flags give it."""
    per_step = options.groups_per_update // options.inner_steps
    yield ("train_batch_size",), per_step, "groups an update (--prompts_per_update × the method's) / --inner_steps"
    yield ("train_micro_batch_size_per_gpu",), options.train_batch_size, "--train_batch_size"
    yield (
        ("gradient_accumulation_steps",), options.accumulation,
        "groups an update / (--inner_steps × --num_learners × --train_batch_size)",
    )  # fmt: skip
    yield ("gradient_clipping",), options.max_grad_norm, "--max_grad_norm"
    yield ("bf16", "enabled"), options.mixed_precision == "bf16", "--mixed_precision"
    yield ("fp16", "enabled"), False, "--mixed_precision"
    yield ("optimizer", "params", "lr"), options.learning_rate, "--learning_rate"
    yield ("optimizer", "params", "betas"), [options.adam_beta1, options.adam_beta2], "--adam_beta1 and --adam_beta2"
    yield ("optimizer", "params", "eps"), options.adam_epsilon, "--adam_epsilon"
    yield ("optimizer", "params", "weight_decay"), options.adam_weight_decay, "--adam_weight_decay"


def _get(config: dict[str, Any], key: Key) -> Any:
    """The value at a path, `None` where there is none."""
    for part in key:
        config = config.get(part) if isinstance(config, dict) else None  # type: ignore[assignment]
    return config


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, bool) or isinstance(found, bool):
        return found is wanted
    return isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=1e-9)


def check_deepspeed(config: dict[str, Any], options: JobOptions) -> None:
    """Refuse a configuration that contradicts the flags; `auto` and absent settings never do.

    Args:
        config: DeepSpeed's configuration.
        options: The flags.

    Raises:
        OptionError: If a setting contradicts its flag, or the ZeRO stage or the optimizer is not one we run.
    """
    for section in ("optimizer", "scheduler", "bf16", "fp16", "zero_optimization"):
        if not isinstance(config.get(section, {}), dict):
            raise OptionError(NAME, f"{section} is no JSON object", "start from one of the files in cluster/")
    stage = _get(config, ("zero_optimization", "stage"))
    if stage is not None and (isinstance(stage, bool) or stage not in (0, 1, 2, 3)):
        raise OptionError(NAME, f"zero_optimization.stage is {stage!r}", "use 0, 1, 2 or 3")
    offload = _get(config, ("zero_optimization", "offload_param", "device"))
    if stage != 3 and offload not in (None, AUTO, "none"):
        raise OptionError(NAME, "offload_param is of ZeRO 3 alone", "use stage 3, or remove it from the JSON")
    _check_scheduler(config.get("scheduler") or {}, options)
    kind = _get(config, ("optimizer", "type"))
    if kind is not None and str(kind).lower() not in ("adam", "adamw"):
        raise OptionError(NAME, f"optimizer.type is {kind!r}, but the --adam_* flags say AdamW", "use 'AdamW'")
    for key, wanted, flags in _flag_values(options):
        found = _get(config, key)
        if found is None or found == AUTO or _same(found, wanted):
            continue
        raise OptionError(
            NAME,
            f"{'.'.join(key)} is {json.dumps(found)}, but {flags} says {json.dumps(wanted)}",
            "write \"auto\" in the JSON or change the flag",
        )  # fmt: skip


def _check_scheduler(scheduler: dict[str, Any], options: JobOptions) -> None:
    """Refuse a schedule that says anything but what the flags say: the learner sets every update's rate by them."""
    kind = str(scheduler.get("type", AUTO))
    if kind != AUTO and options.lr_scheduler not in SCHEDULERS.get(kind, ()):
        fix = f"pass --lr_scheduler {SCHEDULERS[kind][0]}, or " if kind in SCHEDULERS else ""
        raise OptionError(
            NAME, f"scheduler.type is {json.dumps(kind)}, but --lr_scheduler says {json.dumps(options.lr_scheduler)}",
            f"{fix}remove 'scheduler' from the JSON",
        )  # fmt: skip
    params = scheduler.get("params") or AUTO
    for name, value in params.items() if isinstance(params, dict) else [("params", params)]:
        if value != AUTO:
            raise OptionError(
                NAME,
                f"{name} of the scheduler is {json.dumps(value)}, but --learning_rate, --lr_warmup_steps and "
                "--max_train_steps decide the schedule",
                "write \"auto\" in the JSON",
            )  # fmt: skip


def resolve_deepspeed(config: dict[str, Any], options: JobOptions) -> dict[str, Any]:
    """Fill every `auto` and every absent setting with the flags' values.

    Args:
        config: DeepSpeed's configuration, as read from its JSON; it is not changed.
        options: The flags.

    Returns:
        A configuration for `deepspeed.initialize`, without `auto`.

    Raises:
        OptionError: If the configuration contradicts the flags, or an `auto` stands where no flag decides.
    """
    check_deepspeed(config, options)
    resolved = copy.deepcopy(config)
    _leave_to_deepspeed(resolved)
    resolved.pop("scheduler", None)  # the learner sets the rate of every update itself
    optimizer = resolved.setdefault("optimizer", {})
    optimizer.setdefault("type", "AdamW")
    optimizer.setdefault("params", {}).setdefault("torch_adam", True)  # the fused one needs a C++ compiler
    for key, wanted, _ in _flag_values(options):
        place = resolved
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = wanted
    if options.use_8bit_adam:  # which the learner makes itself, of the same flags
        del resolved["optimizer"]
        resolved |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    left = next(_autos(resolved), None)
    if left is not None:
        raise OptionError(NAME, f'{left} is "auto", which no flag decides', "write a value into the JSON")
    return resolved


def _leave_to_deepspeed(config: dict[str, Any]) -> None:
    """Take out what accelerate and transformers would size by the model's width: DeepSpeed has its own defaults.

    Args:
        config: DeepSpeed's configuration; changed in place.
    """
    for section, names in AUTOMATIC.items():
        place = _get(config, section)
        for name in names if isinstance(place, dict) else ():
            if place.get(name) == AUTO:
                del place[name]


def _autos(value: Any, path: str = "") -> Iterator[str]:
    """Paths at which a configuration still says `auto`."""
    if value == AUTO:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _autos(item, f"{path}.{key}" if path else str(key))
