"""What can be known to be wrong before anything heavy starts; imports neither torch nor Ray.

Each check raises an `OptionError` that names the option, what is wrong with it and what to do.
"""

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rayjobs import machine
from rayjobs.deepspeed_config import check_deepspeed, default_config_path, load_deepspeed, zero_stage
from rayjobs.errors import OptionError, reason_of
from rayjobs.mirror.checks import check_address, settle_mirror
from rayjobs.model_checks import check_model, check_tiny_vae
from rayjobs.options import EMBEDDED, OWN_IMAGES, ImageOptions, JobOptions, PairOptions
from rayjobs.options.cluster import cluster_to_join
from rayjobs.options.reward import RewardOptions
from rayjobs.placement import check_joins
from rayjobs.resume import LATEST, check_resume
from rayjobs.rewards import check_terms, reward_plans, settle_config
from rayjobs.sharing import check_sharing
from sharpening.options import OptionError as MethodError
from sharpening.options.training import CONSTANT
from sharpening.rewards.terms import reward_column

MOST_OWN_IMAGES = 96  # of the user's own prompts, in the grid of one look


def validate(options: JobOptions) -> JobOptions:
    """Check what options say together and what they point to, and derive what was left open.

    Args:
        options: As parsed: each within its own bounds.

    Returns:
        A copy in which `output_dir` (and `local_dir`, where that is an address), `resolution`,
        `gradient_accumulation_steps`, `eval_steps`, `eval_guidance_scales`, `num_validation_images`, `reward_config`
        (what the file holds) and, unless a cluster decides, `use_gpu` and `deepspeed_config` have their values.

    Raises:
        OptionError: For the first thing that is wrong.
    """  # noqa: DOC502
    options = settle_folders(options)
    check_sharing(options)
    check_method(options)
    check_batches(options)
    device = find_device(options)
    if device is not None:
        check_joins(options)
        available = machine.gpus() if device == "cuda" else machine.cpus()
        options = settle_device(options, device, available, "this machine")
    elif options.deepspeed_config:
        check_deepspeed(load_deepspeed(options.deepspeed_config), options)
    resolution = check_model(options)
    check_watched(options)
    check_own_prompts(options)
    check_tiny_vae(options)
    settings = check_rewards(options)
    check_data(options.model_copy(update={"resolution": resolution}))
    derived = {
        "resolution": resolution,
        "gradient_accumulation_steps": options.accumulation,
        "eval_steps": options.eval_steps or options.rollout_steps,
        "eval_guidance_scales": options.guidance_scales,
        "num_validation_images": options.num_validation_images or (OWN_IMAGES if options.validation_prompt else None),
        "reward_config": settings,
    }
    resolved = options.model_copy(update=derived)
    store = check_address(resolved)
    run_folder, checkpoint = check_resume(resolved, store)
    if store is None:
        place = run_folder or options.output_dir or new_run_folder(options.method)
        resolved = resolved.model_copy(update={"output_dir": place})
    check_output(resolved)
    return resolved.model_copy(update={"resume_from_checkpoint": checkpoint})


def settle_folders(options: JobOptions) -> JobOptions:
    """Say where run folders lie that are named relative to the present folder (see `machine.lasting`).

    Args:
        options: The options.

    Returns:
        A copy with those places.
    """
    options = settle_mirror(options)
    named = {"output_dir": options.output_dir, "resume_from_checkpoint": options.resume_from_checkpoint}
    if options.local_dir is not None:
        del named["output_dir"]  # an address
    lasting = {name: str(machine.lasting(value)) for name, value in named.items() if value not in (None, LATEST)}
    return options.model_copy(update=lasting)


def check_method(options: JobOptions) -> None:
    """Refuse settings of the method and the schedule that cannot go together."""
    try:
        options.method_options()
        options.training_options()
    except MethodError as error:
        problem, _, remedy = error.reason.rpartition("; ")
        raise OptionError(error.option, problem or error.reason, remedy or "change one of the two") from error
    if options.lr_scheduler not in CONSTANT and options.lr_warmup_steps >= options.max_train_steps:
        raise OptionError(
            "lr_warmup_steps", f"{options.lr_warmup_steps} updates of warm-up leave none of {options.max_train_steps}",
            "pass fewer than --max_train_steps",
        )  # fmt: skip
    if options.lr_scheduler == "constant" and options.lr_warmup_steps:
        raise OptionError("lr_warmup_steps", "'constant' has no warm-up", "pass --lr_scheduler constant_with_warmup")


def check_memory_savers(options: JobOptions, device: str, zero_stage: int) -> None:
    """Refuse switches that need something which is not here, or that the method or ZeRO's stage does not stand.

    Args:
        options: The options.
        device: `cpu` or `cuda`.
        zero_stage: ZeRO's stage.

    Raises:
        OptionError: For the first of them.
    """
    if options.mixed_precision == "bf16" and not options.option_class.bf16:
        raise OptionError(
            "mixed_precision", f"{options.method} compares probabilities of single steps, which bf16's rounding drowns",
            "leave it at no; --rollout_precision bf16 samples faster",
        )  # fmt: skip
    if options.torch_compile and not machine.cxx_compiler():
        raise OptionError(
            "torch_compile", "no C++ compiler here (c++, g++, clang++), and torch.compile needs one",
            "install one, such as g++, or leave it out",
        )  # fmt: skip
    if options.torch_compile and zero_stage == 3:
        raise OptionError(
            "torch_compile", "ZeRO 3 gathers weights between layers, where a compiled denoiser has no between",
            "use a --deepspeed_config with stage 2, or leave it out",
        )  # fmt: skip
    if options.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise OptionError("use_8bit_adam", "bitsandbytes is not installed", "pip install bitsandbytes, or leave it out")
    if options.use_8bit_adam and device == "cpu":
        raise OptionError("use_8bit_adam", "its optimiser runs on GPUs alone, and learners run on CPUs", "leave it out")


def check_batches(options: JobOptions) -> None:
    """Refuse batch sizes that do not make a whole number of passes on every learner."""
    pairs = options.groups_per_update
    at_once = options.num_learners * options.train_batch_size * options.inner_steps
    if pairs % at_once:
        fitting = max(
            (d for d in range(1, options.train_batch_size) if pairs % (at_once // options.train_batch_size * d) == 0),
            default=None,
        )
        remedy = f"pass --train_batch_size {fitting}" if fitting else "change --num_learners or --prompts_per_update"
        raise OptionError(
            "train_batch_size",
            f"{pairs} groups an update ({_product(options)}) are no multiple of {options.num_learners} learners × "
            f"{options.train_batch_size} groups × {options.inner_steps} steps",
            remedy,
        )  # fmt: skip
    stated = options.gradient_accumulation_steps
    if stated is not None and stated != options.accumulation:
        raise OptionError(
            "gradient_accumulation_steps",
            f"is {stated}, but {pairs} groups an update on {options.num_learners} learners × "
            f"{options.train_batch_size} groups × {options.inner_steps} steps make {options.accumulation}",
            "leave it out, or change --train_batch_size",
        )  # fmt: skip


def _product(options: JobOptions) -> str:
    return f"{options.prompts_per_update} prompts × {options.method_options().groups_per_prompt}"


def find_device(options: JobOptions) -> str | None:
    """Where learners and actors run.

    Args:
        options: The options.

    Returns:
        `cuda` or `cpu`; `None` when that is for a cluster to say, which is not joined yet.

    Raises:
        OptionError: If a GPU is wanted where there is none.
    """
    if cluster_to_join(options.ray_address) is not None:
        return None
    gpus = machine.gpus()
    if options.use_gpu == "yes" and not gpus:
        raise OptionError("use_gpu", "this machine shows no GPU", "pass --use_gpu no, or join a cluster: --ray_address")
    return "cuda" if gpus and options.use_gpu != "no" else "cpu"


def settle_device(options: JobOptions, device: str, available: int, where: str) -> JobOptions:
    """Fix the device and what follows from it; the driver calls this for a cluster, once it has joined it.

    Args:
        options: The options.
        device: `cuda` or `cpu`.
        available: GPUs or CPUs that learners can have.
        where: Whose they are, for the message.

    Returns:
        A copy with `use_gpu` and `deepspeed_config` set.

    Raises:
        OptionError: If learners outnumber the devices, or the DeepSpeed configuration contradicts the flags.
    """
    kind = "GPU" if device == "cuda" else "CPU"
    if options.num_learners > available:
        plural = kind if available == 1 else f"{kind}s"
        raise OptionError(
            "num_learners", f"{options.num_learners} learners need as many {kind}s, and {where} has {available} "
            f"{plural}", f"pass at most {available}, or join a larger cluster: --ray_address",
        )  # fmt: skip
    path = options.deepspeed_config or default_config_path(device)
    config = load_deepspeed(path)
    check_deepspeed(config, options)
    check_memory_savers(options, device, zero_stage(config))
    return options.model_copy(update={"use_gpu": "yes" if device == "cuda" else "no", "deepspeed_config": path})


def check_rewards(options: RewardOptions) -> dict[str, Any] | None:
    """Refuse rewards that cannot be found, settings that no reward has, and models that are not there.

    Args:
        options: The options.

    Returns:
        What `--reward_config` holds, for the run's own configuration; `None` where there is nothing.

    Raises:
        OptionError: For the first thing that is wrong.
    """
    from sharpening.rewards.base import RewardModelError
    from sharpening.rewards.files import check_reward_files

    check_terms(options)
    settings = settle_config(options)
    for plan in reward_plans(options):
        try:
            check_reward_files(plan.term.reward, plan.model, plan.checkpoint)
        except RewardModelError as error:
            problem, remedy = reason_of(error)
            own = settings.get(plan.name, {}).get(error.option.removeprefix("reward_"))
            if own is not None and own in (plan.model, plan.checkpoint):  # the file said so, no flag
                raise OptionError("reward_config", f"{plan.name}: {problem}", remedy) from error
            raise OptionError(error.option, problem, remedy) from error
    return settings or None


def check_watched(options: JobOptions) -> None:
    """Refuse watched rewards that nobody would ask, or whose column in the tables is another's."""
    from sharpening.shapes.captions import CATEGORIES

    if options.watched and options.skip_evaluation:
        raise OptionError("watch", "without evaluation nobody asks a watched reward", "leave out --skip_evaluation")
    taken = {reward_column(category): category for category in CATEGORIES}
    for option, terms in (("reward", options.terms if options.mix else ()), ("watch", options.watched)):
        for term in terms:
            category = taken.get(reward_column(term.name))
            if category is not None:
                raise OptionError(option, f"'{term.name}' is a category of the evaluation", "rename the class")


def check_own_prompts(options: JobOptions) -> None:
    """Refuse the user's own prompts where nothing would draw them, or more images than a grid can show."""
    name, count = "validation_prompt", len(options.validation_prompt)
    if not count:
        if options.num_validation_images is not None:
            raise OptionError(
                "num_validation_images", "counts images of your own prompts, and there are none",
                "pass --validation_prompt, or leave it out",
            )  # fmt: skip
        return
    if options.skip_evaluation:
        raise OptionError(name, "with --skip_evaluation nothing is drawn but rollouts", "leave out one of the two")
    if not options.validation_steps:
        raise OptionError(name, "with --validation_steps 0 there are no looks", "pass --validation_steps 1 or more")
    images = options.num_validation_images or OWN_IMAGES
    if count * images > MOST_OWN_IMAGES:
        raise OptionError(
            name, f"{count} prompts × {images} images are {count * images} a look, and a grid shows {MOST_OWN_IMAGES}",
            "pass fewer, or a smaller --num_validation_images",
        )  # fmt: skip


def check_data(options: JobOptions) -> None:
    """Refuse training data that are absent, empty, broken or lack a column; a few examples are read."""
    from rayjobs.runtime.training_data import check_source

    if isinstance(options, (ImageOptions, PairOptions)) and options.aspect_ratio_buckets:
        check_buckets(options)
    check_source(options)


def check_buckets(options: ImageOptions | PairOptions) -> None:
    """Refuse buckets of images that are all squares."""
    name = "aspect_ratio_buckets"
    if isinstance(options, PairOptions):
        if options.ranks:
            raise OptionError(name, "pairs that the run draws itself are squares", "leave it out, or pass --train_data")
    elif options.dataset_name is None and options.train_data_dir is None and options.train_data == EMBEDDED:
        raise OptionError(name, "the embedded images are all squares", "leave it out, or pass --train_data")


def new_run_folder(method: str) -> str:
    """A folder name under `runs/` that nothing has yet."""
    stem = machine.lasting("runs") / time.strftime(f"{method}-%Y%m%d-%H%M%S")
    folder, number = stem, 1
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return str(folder)


def check_output(options: JobOptions) -> None:
    """Refuse an output folder that is another run's or cannot be written to; creates nothing that stays."""
    folder, name = Path(str(options.run_folder)).expanduser(), options.folder_option
    remedy = "pass another folder"
    if folder.exists() and not folder.is_dir():
        raise OptionError(name, f"{folder} is a file", remedy)
    if (folder / "config.json").exists() and options.resume_from_checkpoint is None:
        raise OptionError(
            name, f"{folder} belongs to another run",
            "pass another folder, or continue that run with --resume_from_checkpoint latest",
        )  # fmt: skip
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OptionError(name, f"{place} is a file, so {folder} cannot be made", remedy)
    try:  # permission bits say nothing to root or on a read-only file system: only trying does
        with tempfile.NamedTemporaryFile(dir=place, prefix=".sharpening-") as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        raise OptionError(name, f"cannot write to {place} ({error.strerror})", remedy) from error
