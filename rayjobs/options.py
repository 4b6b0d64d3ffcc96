"""The options of a fine-tuning job: a pydantic model a method, from which the command line and its help are made.

Every option says its unit, bounds and the paper's symbol: what all jobs have here, what a method adds where the method
declares it (`sharpening.options`). Nothing heavy is imported.
"""

import math
from copy import copy
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import PurePath
from typing import Any, ClassVar, Literal, get_type_hints

from pydantic import BaseModel, create_model, field_validator

from rayjobs.declaring import EMBEDDED, Options, option
from rayjobs.model_options import ModelOptions
from rayjobs.placement import check_label
from rayjobs.ray_options import RayOptions
from rayjobs.reward_options import RewardOptions
from sharpening import methods
from sharpening.options import Kind, MethodOptions, TrainingOptions
from sharpening.options.training import Scheduler
from sharpening.rewards.terms import Term, parse_names

__all__ = ["EMBEDDED", "RANK", "JobOptions", "Options", "RLHFOptions", "option", "options_class"]

RANK = "rank"
PLACES = (
    "output_dir", "local_dir", "resume_from_checkpoint", "ray_address", "bind", "rollout_nodes", "learner_nodes",
    "served_rewards",
)  # fmt: skip
"""Options that say where a run is."""
OWN_IMAGES = 4
"""Images of each of the user's own prompts, as in diffusers' scripts."""
TRACKERS = ("tensorboard", "wandb", "mlflow")
TRAINING = TrainingOptions()
GROUPS = {
    "model": "the diffusion model that is fine-tuned",
    "data": "what it learns from",
    "method": "the method",
    "reward": "who judges the images",
    "optimiser": "AdamW under DeepSpeed",
    "ray": "processes and where they run",
    "evaluation": "held-out prompts, before and after",
    "output": "the run folder",
}


def _declared(option_class: type[MethodOptions], name: str) -> Any:
    """The pydantic field of an option that a method declares."""
    found = next(f for f in fields(option_class) if f.name == name)
    assert found.default is not MISSING
    told = {key: found.metadata[key] for key in ("unit", "about", "symbol", "fix", "resume")}
    return option(found.default, "method", **told, **found.metadata["bounds"])


class JobOptions(RewardOptions, ModelOptions, RayOptions):
    """What every fine-tuning job can be told; `options_class` adds what a method can.

    `rayjobs.validation.validate` returns a copy in which every derived `None` has its value.
    """

    # model, with what `ModelOptions` declares
    pretrained_model_name_or_path: str = option(
        EMBEDDED, "model", "folder or hub id", "diffusers pipeline to start from, which is also the reference", "θ_ref"
    )
    revision: str | None = option(
        None, "model", "branch, tag, commit", "revision of a model on the hub", shown="its newest"
    )
    mixed_precision: Literal["no", "bf16"] = option(
        "no", "model", "-",
        "bf16 holds and uses all weights in bfloat16, in learners and actors; AdamW keeps float32 master weights",
    )  # fmt: skip
    pretrained_tiny_vae_path: str | None = option(
        None, "model", "folder or hub id",
        "AutoencoderTiny that decodes what rewards judge in training; held-out images get the model's own VAE",
        shown="the model's own VAE",
    )  # fmt: skip
    rank: int = option(
        TRAINING.rank, "model", "-", "rank of LoRA's adapters; 0 trains all of the denoiser's weights", "r", ge=0
    )
    lora_alpha: float | None = option(
        TRAINING.lora_alpha, "model", "-", "scales adapters by lora_alpha / rank", "α", "rank", gt=0
    )
    lora_target_modules: tuple[str, ...] = option(
        TRAINING.lora_target_modules, "model", "ends of layer names", "layers of the denoiser that get an adapter",
        shown="the family's attention projections",
    )  # fmt: skip
    allow_tf32: bool = option(False, "model", "switch", "let matrix products on Ampere GPUs and later use TF32")
    seed: int = option(
        TRAINING.seed, "model", "integer", "run seed; all noise is a function of it and of counters", ge=0
    )

    # data
    prompts_per_update: int = option(
        TRAINING.prompts_per_update, "data", "prompts an update", "examples behind one update", ge=1
    )
    rollout_batch_size: int = option(
        TRAINING.rollout_batch_size, "data", "prompts a task", "examples that one rollout task holds", ge=1
    )

    # method
    rollout_steps: int = _declared(MethodOptions, "rollout_steps")
    guidance_scale: float = _declared(MethodOptions, "guidance_scale")
    rollout_precision: Literal["fp32", "bf16"] = _declared(MethodOptions, "rollout_precision")

    # reward, with what `RewardOptions` declares
    max_failed_share: float = option(
        TRAINING.max_failed_share, "reward", "share of an update's prompts",
        "prompts that may fail to score before the run stops", resume=False, ge=0, lt=1,
    )  # fmt: skip

    served_rewards: str | None = option(
        None, "reward", "application",
        "ask rewards that the cluster serves already instead of starting any: the application of that name, or with "
        "several rewards NAME-<reward> of each", shown="starts its own", resume=False,
    )  # fmt: skip

    watch: str = option(
        "", "reward", "name, name, …", "rewards that are only watched: asked about held-out prompts, never in training",
        shown="none", resume=False,
    )  # fmt: skip

    # optimiser
    train_batch_size: int = option(
        TRAINING.train_batch_size,
        "optimiser",
        "groups a device",
        "groups (a prompt at a timestep) in one forward and backward pass",
        ge=1,
    )
    inner_steps: int = option(
        TRAINING.inner_steps, "optimiser", "steps an update", "optimiser steps made from one update's experience", ge=1
    )
    gradient_accumulation_steps: int | None = option(
        None, "optimiser", "passes a step", "checked against the value that the other options give", "-",
        "groups an update / (num_learners × train_batch_size × inner_steps)", ge=1,
    )  # fmt: skip
    max_train_steps: int = option(
        TRAINING.updates, "optimiser", "updates", "optimiser updates in the whole run", resume=False, ge=1
    )
    learning_rate: float = option(
        TRAINING.learning_rate, "optimiser", "-", "AdamW's step size (paper: 5e-6 for SDXL)", gt=0
    )
    lr_scheduler: Scheduler = option(
        TRAINING.lr_scheduler, "optimiser", "-", "shape of the learning rate over the updates"
    )
    lr_warmup_steps: int = option(
        TRAINING.lr_warmup_steps, "optimiser", "updates", "updates over which the learning rate rises", ge=0
    )
    lr_num_cycles: int = option(
        TRAINING.lr_num_cycles, "optimiser", "half cosines", "of cosine_with_restarts, each begins at the full rate",
        ge=1,
    )  # fmt: skip
    lr_power: float = option(TRAINING.lr_power, "optimiser", "-", "exponent of polynomial", gt=0)
    adam_beta1: float = option(
        TRAINING.adam_beta1, "optimiser", "-", "decay of the gradient's mean (paper: 0)", "β₁", ge=0, lt=1
    )
    adam_beta2: float = option(
        TRAINING.adam_beta2, "optimiser", "-", "decay of the gradient's square", "β₂", ge=0, lt=1
    )
    adam_weight_decay: float = option(
        TRAINING.adam_weight_decay, "optimiser", "1 / update", "AdamW's weight decay over step size", ge=0
    )
    adam_epsilon: float = option(TRAINING.adam_epsilon, "optimiser", "-", "AdamW's denominator offset", gt=0)
    max_grad_norm: float = option(
        TRAINING.max_grad_norm, "optimiser", "-", "gradient norm above which it is scaled down", gt=0
    )
    use_ema: bool = option(
        TRAINING.use_ema, "optimiser", "switch",
        "average the trained weights over the updates; the final pipeline and the last evaluation have the average, "
        "rollouts the weights themselves",
    )  # fmt: skip
    ema_decay: float = option(
        TRAINING.ema_decay, "optimiser", "1 / update", "largest decay of that average (EMAModel's, which starts lower)",
        ge=0, lt=1,
    )  # fmt: skip
    gradient_checkpointing: bool = option(
        TRAINING.gradient_checkpointing, "optimiser", "switch",
        "compute the denoiser's activations again in the backward pass: less memory, the same gradients", resume=False,
    )  # fmt: skip
    torch_compile: bool = option(
        TRAINING.torch_compile, "optimiser", "switch",
        "compile the denoiser, in learners and actors; needs a C++ compiler and a minute or more at the first update",
    )  # fmt: skip
    use_8bit_adam: bool = option(
        False, "optimiser", "switch", "AdamW with moments in 8 bit; needs bitsandbytes and a GPU"
    )  # fmt: skip
    deepspeed_config: str | None = option(
        None, "optimiser", "JSON file", "DeepSpeed configuration (ZeRO stage); 'auto' takes the flags' values", "-",
        "cluster/deepspeed_cpu.json or cluster/deepspeed_gpu.json",
    )  # fmt: skip

    # ray, with what `RayOptions` declares
    num_rollout_actors: int = option(
        2, "ray", "processes", "rollout actors; never changes the result", resume=False, ge=1
    )
    rollout_threads: int = option(1, "ray", "CPU threads", "threads of a rollout actor", ge=1)
    rollout_nodes: str | None = option(
        None, "ray", "label key=value", "nodes of a cluster that rollout actors and rewards may run on, by Ray's label",
        shown="any", resume=False,
    )  # fmt: skip
    num_learners: int = option(1, "ray", "processes", "DeepSpeed learner ranks", ge=1)
    learner_threads: int = option(2, "ray", "CPU threads", "threads of a learner rank", ge=1)
    learner_nodes: str | None = option(
        None, "ray", "label key=value", "nodes of a cluster that learners may run on, by Ray's label", shown="any",
        resume=False,
    )  # fmt: skip
    staleness: int = option(
        0, "ray", "updates", "updates that rollouts may lag behind the learner; 0 is synchronous", ge=0
    )
    use_gpu: Literal["auto", "yes", "no"] = option("auto", "ray", "-", "whether learners and actors run on GPUs")
    max_failures: int = option(3, "ray", "restarts", "learner restarts before the run gives up", resume=False, ge=0)

    # evaluation
    eval_prompts: int = option(
        600, "evaluation", "prompts", "benchmark prompts, spread over the categories", resume=False, ge=2
    )
    eval_other_prompts: int = option(
        150, "evaluation", "prompts", "how many of them at the other guidance scales", resume=False, ge=2
    )
    eval_steps: int | None = option(
        None, "evaluation", "denoising steps", "sampler steps of evaluation images", "T", "rollout_steps",
        resume=False, ge=1,
    )  # fmt: skip
    eval_guidance_scales: tuple[float, ...] = option(
        (1.0, 3.0), "evaluation", "-", "guidance scales to evaluate at; the rollouts' own is always among them", "w",
        resume=False,
    )  # fmt: skip
    validation_steps: int = option(
        6, "evaluation", "updates", "updates between looks at other held-out prompts; 0 for none", resume=False, ge=0
    )
    validation_prompts: int = option(48, "evaluation", "prompts", "how many of those", resume=False, ge=2)
    validation_prompt: tuple[str, ...] = option(
        (), "evaluation", "texts", "your own prompts, drawn before training, at every look and after it, each with its "
        "reward; --validation_prompts with texts is the same", shown="none", resume=False,
    )  # fmt: skip
    num_validation_images: int | None = option(
        None, "evaluation", "images a prompt", "images of each of your own prompts, each from noise of its own",
        shown=f"{OWN_IMAGES} with --validation_prompt", resume=False, ge=1,
    )  # fmt: skip
    skip_evaluation: bool = option(False, "evaluation", "switch", "train only", resume=False)

    # output
    output_dir: str | None = option(
        None, "output", "folder or address", "the run folder, or where to copy it while the run goes on: s3://, gs://, "
        "abfss://, hdfs://, file://; keys come from the environment", shown="runs/<method>-<date>-<time>", resume=False,
    )  # fmt: skip
    local_dir: str | None = option(
        None, "output", "folder", "the run folder of a run whose --output_dir is an address; every node must see it",
        shown="runs/<the address's last part>", resume=False,
    )  # fmt: skip
    checkpointing_steps: int = option(10, "output", "updates", "updates between checkpoints", resume=False, ge=1)
    checkpoints_total_limit: int | None = option(2, "output", "checkpoints", "checkpoints to keep", resume=False, ge=1)
    resume_from_checkpoint: str | None = option(
        None, "output", "folder, address or 'latest'", "checkpoint to go on from", shown="start afresh", resume=False
    )
    report_to: tuple[Literal["none", "tensorboard", "wandb", "mlflow", "all"], ...] = option(
        ("none",), "output", "names", "trackers that follow the run: tensorboard, wandb, mlflow, all or none; their "
        "keys come from the environment", resume=False,
    )  # fmt: skip
    tracker_project_name: str = option(
        "trajectory-sharpening", "output", "name", "project (MLflow: experiment) that trackers file the run under",
        resume=False,
    )  # fmt: skip
    logging_dir: str = option(
        "logs", "output", "folder", "where trackers keep their files, inside the run folder", resume=False
    )
    push_to_hub: bool = option(
        False, "output", "switch", "upload the pipeline at the end, with the token in HF_TOKEN", resume=False
    )
    hub_model_id: str | None = option(
        None, "output", "owner/name", "repository to upload to", shown="the run folder's name", resume=False
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _split_trackers(cls, value: Any) -> Any:
        """Accept `tensorboard wandb`, `tensorboard,wandb` and, as diffusers' scripts do, `all`."""
        items = value if isinstance(value, (list, tuple)) else [value]
        names = [name.strip() for item in items for name in str(item).split(",") if name.strip()]
        return TRACKERS if "all" in names else tuple(dict.fromkeys(names)) or ("none",)

    @field_validator("report_to")
    @classmethod
    def _check_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in value and len(value) > 1:
            raise ValueError("none goes with no other tracker; leave it out")
        return value

    @field_validator("logging_dir")
    @classmethod
    def _check_logging_dir(cls, value: str) -> str:
        if not value or PurePath(value).is_absolute() or ".." in PurePath(value).parts:
            raise ValueError("must be inside the run folder; pass a relative name such as logs")
        return value

    @field_validator("validation_prompt", mode="before")
    @classmethod
    def _check_own_prompts(cls, value: Any) -> Any:
        """Accept one text or several, as diffusers' scripts do; a comma is part of a prompt."""
        texts = value if isinstance(value, (list, tuple)) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a prompt is a text, and {text} is none; put it in quotes")
            if not text.strip():
                raise ValueError("a prompt without any text; write one, or leave the option out")
        return tuple(text.strip() for text in texts)

    @field_validator("eval_guidance_scales", mode="before")
    @classmethod
    def _split_scales(cls, value: Any) -> Any:
        """Accept `1 2 3` and `1,2,3`."""
        if isinstance(value, (list, tuple)):
            value = ",".join(str(item) for item in value)
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Accept `to_q to_v` and `to_q,to_v`."""
        parts = [value] if isinstance(value, str) else value
        return tuple(name.strip() for part in parts for name in str(part).split(",") if name.strip())

    @field_validator("eval_guidance_scales")
    @classmethod
    def _check_scales(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not math.isfinite(scale) or scale < 0 for scale in value):
            raise ValueError("every guidance scale must be a finite number of at least 0")
        return value

    @field_validator("watch")
    @classmethod
    def _check_watch(cls, value: str) -> str:
        parse_names(value)
        return value

    groups: ClassVar[dict[str, str]] = GROUPS

    @field_validator("rollout_nodes", "learner_nodes")
    @classmethod
    def _check_label(cls, value: str | None) -> str | None:
        return check_label(value)

    method: ClassVar[str] = ""
    option_class: ClassVar[type[MethodOptions]] = MethodOptions

    @property
    def run_folder(self) -> str | None:
        """The folder that the run works in, wherever it is copied to."""
        return self.local_dir or self.output_dir

    @property
    def folder_option(self) -> str:
        """The option that names that folder."""
        return "local_dir" if self.local_dir else "output_dir"

    @property
    def groups_per_update(self) -> int:
        """Groups, the unit a loss is a mean over, of one update, over all learners."""
        return self.prompts_per_update * self.method_options().groups_per_prompt

    @property
    def accumulation(self) -> int:
        """Forward and backward passes that a learner makes for one optimiser step."""
        return self.groups_per_update // (self.num_learners * self.train_batch_size * self.inner_steps)

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """Guidance scales to evaluate at: the one the model is trained for first, then the others, rising."""
        others = sorted({scale for scale in self.eval_guidance_scales if scale != self.guidance_scale})
        return (self.guidance_scale, *others)

    @property
    def watched(self) -> tuple[Term, ...]:
        """The rewards that are only watched."""
        return parse_names(self.watch)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that follow the run."""
        return tuple(name for name in self.report_to if name != "none")

    @property
    def data(self) -> Kind:
        """The kind of training example the method learns from."""
        return self.option_class.data

    def method_options(self) -> MethodOptions:
        """The part that the method itself reads.

        Returns:
            The method's options; making them checks their combinations.
        """
        return self.option_class(**{f.name: getattr(self, f.name) for f in fields(self.option_class)})

    def training_options(self) -> TrainingOptions:
        """The part that the in-process loop reads as well.

        Returns:
            The options of `sharpening.loop`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(TrainingOptions) if f.name != "updates"}
        return TrainingOptions(updates=self.max_train_steps, **values)

    def config(self) -> dict[str, Any]:
        """What a run folder's `config.json` holds; `--config` reads it back.

        Returns:
            The method, and every option but those that say where a run is (its folder, its cluster and nodes), so that
            the file can start another run and names no machine.
        """
        values = self.model_dump(mode="json", exclude=set(PLACES))
        groups = list(self.groups)
        ordered = sorted(values, key=lambda name: groups.index(self.metadata(name)["group"]))
        return {"method": self.method, **{name: values[name] for name in ordered}}

    def __reduce__(self) -> Any:
        # The class is made at run time: another process makes it again from the method's name.
        return _load, (self.method, self.model_dump())


def _load(method: str, values: dict[str, Any]) -> JobOptions:
    return options_class(method)(**values)


NAMED = "name on the hub, or folder"


class DatasetOptions(BaseModel):
    """What all kinds of training data can be told; names are those of diffusers' scripts."""

    dataset_name: str | None = option(
        None, "data", NAMED, "data set of the library `datasets`: on the hub, of files, or saved to disk"
    )
    dataset_config_name: str | None = option(None, "data", "name", "its configuration", shown="the only one it has")
    max_train_samples: int | None = option(
        None, "data", "examples", "learn from a random choice of so many, the same for the same --seed", shown="all",
        ge=1,
    )  # fmt: skip


class PromptOptions(DatasetOptions):
    """Where prompts come from, for methods that draw their own images."""

    prompts: str = option(
        EMBEDDED, "data", "file or folder", "training prompts: .txt (one a line), .jsonl, .parquet or a folder", "c"
    )
    caption_column: str = option("text", "data", "column", "where the data keep the prompt")


class ShapeOptions(BaseModel):
    """Which shapes given images are learnt in."""

    aspect_ratio_buckets: bool = option(
        False, "data", "switch", "keep the images' shapes, up to 2 : 1; every update is of one shape"
    )


class ImageOptions(ShapeOptions, DatasetOptions):
    """Where images with captions come from."""

    train_data: str = option(
        EMBEDDED, "data", "file or folder", "images with captions to learn from: .parquet, .tar or a folder", "x_0, c"
    )
    train_data_dir: str | None = option(
        None, "data", "folder", "the same, for a folder: of images with metadata.jsonl or .csv, of .tar or .parquet"
    )
    image_column: str = option("image", "data", "column", "where the data keep images: PNG, JPEG or WebP")
    caption_column: str = option("text", "data", "column", "where the data keep their captions")


class PairOptions(ShapeOptions, PromptOptions):
    """Where preference pairs come from."""

    train_data: str = option(
        RANK, "data", "file or folder",
        f"preference pairs to learn from; '{RANK}': the base model draws them for --prompts, the reward ranks them",
    )  # fmt: skip
    dataset_name: str | None = option(
        None, "data", NAMED, "preference pairs to learn from, a data set of the library `datasets`"
    )
    caption_column: str = option("caption", "data", "column", "where files keep the caption or prompt")
    ranked_prompts: int = option(400, "data", "prompts", f"prompts that '{RANK}' draws images for", ge=1)
    ranked_samples: int = option(
        4, "data", "images a prompt", f"images of a prompt, of which '{RANK}' keeps the best and the worst", ge=2
    )

    @property
    def ranks(self) -> bool:
        """Whether the run ranks its pairs itself."""
        return self.train_data == RANK and self.dataset_name is None


DATA: dict[Kind, type[BaseModel]] = {"prompts": PromptOptions, "images": ImageOptions, "pairs": PairOptions}


@lru_cache
def options_class(method: str) -> type[JobOptions]:
    """The options of a method's jobs: what all have, with the defaults it was tuned with, and what it adds.

    Args:
        method: A name in `sharpening.methods.METHODS`.

    Returns:
        The pydantic model.
    """
    declared = methods.options_class(method)
    hints = get_type_hints(declared)
    found: dict[str, Any] = {f.name: (hints[f.name], _declared(declared, f.name)) for f in fields(declared)}
    for f in fields(TrainingOptions):
        name = "max_train_steps" if f.name == "updates" else f.name
        common = JobOptions.model_fields[name]
        tuned = copy(common)
        tuned.default = getattr(declared.training, f.name)
        if tuned.default != common.default:
            found[name] = (common.annotation, tuned)
    bases = (JobOptions, DATA[declared.data])
    made: Any = create_model(f"{declared.__name__}OfJob", __base__=bases, __module__=__name__, **found)
    made.method, made.option_class = method, declared
    made.about = f"{declared.about} of a diffusion model on Ray."
    return made


RLHFOptions = options_class("rlhf")
