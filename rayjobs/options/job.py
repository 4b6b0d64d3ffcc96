"""The options of a fine-tuning job: a pydantic model a method, from which the command line and its help are made.

Every option says its unit, bounds and the paper's symbol: what all jobs have here and in the files beside this one,
what a method adds where the method declares it (`sharpening.options`). Nothing heavy is imported.
"""

from copy import copy
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_type_hints

from pydantic import create_model, field_validator

from rayjobs.options.cluster import RayOptions
from rayjobs.options.data import DATA
from rayjobs.options.declaring import EMBEDDED, option
from rayjobs.options.evaluation import EvaluationOptions
from rayjobs.options.model import ModelOptions
from rayjobs.options.optimiser import TRAINING, OptimiserOptions
from rayjobs.options.output import OutputOptions
from rayjobs.options.reward import RewardOptions
from rayjobs.placement import check_label
from sharpening import methods
from sharpening.options import Kind, MethodOptions, TrainingOptions
from sharpening.rewards.terms import Term, parse_names

PLACES = (
    "output_dir", "local_dir", "resume_from_checkpoint", "ray_address", "bind", "rollout_nodes", "learner_nodes",
    "served_rewards",
)  # fmt: skip
"""Options that say where a run is."""
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


class JobOptions(OutputOptions, EvaluationOptions, OptimiserOptions, RewardOptions, ModelOptions, RayOptions):
    """What every fine-tuning job can be told; `options_class` adds what a method can.

    `rayjobs.validation.validate` returns a copy in which every derived `None` has its value.
    """

    groups: ClassVar[dict[str, str]] = GROUPS
    method: ClassVar[str] = ""
    option_class: ClassVar[type[MethodOptions]] = MethodOptions

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

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Accept `to_q to_v` and `to_q,to_v`."""
        parts = [value] if isinstance(value, str) else value
        return tuple(name.strip() for part in parts for name in str(part).split(",") if name.strip())

    @field_validator("watch")
    @classmethod
    def _check_watch(cls, value: str) -> str:
        parse_names(value)
        return value

    @field_validator("rollout_nodes", "learner_nodes")
    @classmethod
    def _check_label(cls, value: str | None) -> str | None:
        return check_label(value)

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
