"""The options of `rayjobs/rlhf.py`: one pydantic model, from which the command line and its help are made.

Every option says its unit, bounds and the paper's symbol here; defaults that the in-process loop has too are those of
`sharpening.options`. Nothing heavy is imported.
"""

import math
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sharpening.options import SharpeningOptions, TrainingOptions

EMBEDDED = "embedded"
METHOD = SharpeningOptions()
TRAINING = TrainingOptions()
GROUPS = {
    "model": "the diffusion model that is sharpened",
    "prompts": "what it is asked to draw",
    "method": "trajectory sharpening (arXiv 2502.12146, Algorithm 2)",
    "reward": "who judges the images",
    "optimiser": "AdamW under DeepSpeed",
    "ray": "processes and where they run",
    "evaluation": "held-out prompts, before and after",
    "output": "the run folder",
}


def option(
    default: Any,
    group: str,
    unit: str,
    about: str,
    symbol: str = "-",
    shown: str = "",
    fix: str = "",
    resume: bool = True,
    **bounds: float,
) -> Any:
    """Declare an option.

    Args:
        default: The vetted setting; `None` where validation derives it.
        group: A key of `GROUPS`.
        unit: The value's unit.
        about: One sentence for the help.
        symbol: The paper's symbol, `-` when it has none.
        shown: How the help words the default when the bare value would not say it.
        fix: What to do about a wrong value, when the bounds alone would not say it.
        resume: Whether a resumed run must keep the value (it changes the arithmetic).
        **bounds: pydantic's `ge`, `gt`, `le`, `lt`.

    Returns:
        The pydantic field.
    """
    extra = {"group": group, "unit": unit, "symbol": symbol, "shown": shown, "fix": fix, "resume": resume}
    return Field(default, description=about, json_schema_extra=extra, **bounds)  # type: ignore[call-overload]


class RLHFOptions(BaseModel):
    """Everything that decides what an RLHF sharpening run does.

    `rayjobs.validation.validate` returns a copy in which every derived `None` has its value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # model
    pretrained_model_name_or_path: str = option(
        EMBEDDED, "model", "folder or hub id", "diffusers pipeline to start from, which is also the reference", "θ_ref"
    )
    resolution: int | None = option(
        None, "model", "pixels", "width and height of the images; must be the model's", "H, W", "the model's", ge=8
    )
    mixed_precision: Literal["no", "bf16"] = option("no", "model", "-", "arithmetic of the learner")
    rollout_precision: Literal["fp32", "bf16"] = option(
        METHOD.rollout_precision,
        "model",
        "-",
        "arithmetic of sampling and branching, never that of the errors compared",
    )
    allow_tf32: bool = option(False, "model", "switch", "let matrix products on Ampere GPUs and later use TF32")
    seed: int = option(
        TRAINING.seed, "model", "integer", "run seed; all noise is a function of it and of counters", ge=0
    )

    # prompts
    prompts: str = option(EMBEDDED, "prompts", "file", "training prompts: .txt (one a line), .jsonl or .parquet", "c")
    caption_column: str = option("text", "prompts", "column", "where a .jsonl or .parquet file keeps the prompt")
    prompts_per_update: int = option(
        TRAINING.prompts_per_update, "prompts", "prompts an update", "prompts behind one optimiser update", ge=1
    )
    rollout_batch_size: int = option(
        TRAINING.rollout_batch_size, "prompts", "prompts a task", "prompts that one rollout task holds", ge=1
    )

    # method
    branches: int = option(
        METHOD.branches, "method", "branches", "branches of one prompt and timestep (paper: 3)", "n", ge=2,
        fix="RLHF sharpening compares a winner with a loser, so pass --branches 2 or more",
    )  # fmt: skip
    branch_steps: int = option(
        METHOD.branch_steps, "method", "denoising steps", "steps that a branch takes (paper: 3)", "m", ge=1
    )
    temperature: float = option(
        METHOD.temperature,
        "method",
        "reward units",
        "path-integral temperature; 0 takes the best and the worst branch",
        "λ",
        ge=0,
    )
    loss: Literal["dpo_margin", "dpo", "rebel"] = option(
        METHOD.loss, "method", "-", "dpo_margin is Eq. 11, dpo leaves its reward margin out, rebel is a regression",
        "L_RLHF",
    )  # fmt: skip
    beta: float = option(
        METHOD.beta, "method", "1 / mean squared error", "strength of the pull to the reference", "β", gt=0
    )
    reward_scale: float = option(
        METHOD.reward_scale,
        "method",
        "1 / reward unit",
        "scale of the reward gap in the loss; 0 leaves it out",
        "η",
        ge=0,
    )
    snr_gamma: float = option(
        METHOD.snr_gamma, "method", "signal-to-noise ratio",
        "weighs states by min(SNR, γ) / SNR in the loss, so that nearly clean ones do not drown the others; 0: equally",
        "ω_T", ge=0,
    )  # fmt: skip
    winner_weight: float = option(
        METHOD.winner_weight, "method", "1 / mean squared error",
        "weight of Eq. 9's supervised error on the winner beside the preference loss", "μ", ge=0,
    )  # fmt: skip
    rollout_steps: int = option(
        METHOD.rollout_steps, "method", "denoising steps", "sampler steps of a rollout", "T", ge=1
    )
    guidance_scale: float = option(
        METHOD.guidance_scale,
        "method",
        "-",
        "classifier-free guidance of rollouts; 1 is unguided and costs half",
        "w",
        ge=0,
    )
    timesteps_per_rollout: int = option(
        METHOD.timesteps_per_rollout,
        "method",
        "timesteps a prompt",
        "timesteps at which every prompt's images are branched and learnt",
        "K",
        ge=1,
    )
    selection: Literal["prompt", "timestep"] = option(
        METHOD.selection, "method", "-",
        "one winner and loser a prompt, by the reward over all its timesteps, or each timestep its own", "τ̂",
    )  # fmt: skip
    latents_per_prompt: int = option(
        METHOD.latents_per_prompt, "method", "latents",
        "clean latents a prompt: 0 for one a branch, 1 as in the paper's text", "x_0", ge=0,
    )  # fmt: skip
    branch_noise: Literal["shared", "own", "fresh"] = option(
        METHOD.branch_noise,
        "method",
        "-",
        "noise of the branches: one for all, each one's sampling noise, or new for each",
        "ε_i",
    )
    target: Literal["initial", "state"] = option(
        METHOD.target, "method", "-", "noise a state is regressed to: the branch's, or the one its state implies", "ε"
    )

    loss_guidance_scale: float = option(
        METHOD.loss_guidance_scale, "method", "-",
        "guidance of the prediction inside the loss; 1 is the conditional one", "w", ge=0,
    )  # fmt: skip

    # reward
    reward: Literal["clip"] = option("clip", "reward", "-", "which reward: clip is CLIP's cosine × 100", "R")
    reward_model: str = option(
        EMBEDDED, "reward", "architecture, folder or hub id", "open_clip model of the CLIP reward"
    )
    reward_checkpoint: str | None = option(
        None, "reward", "file or pretrained tag", "weights for an architecture name", shown="the model's own"
    )
    reward_replicas: int = option(1, "reward", "processes", "Ray Serve replicas of the reward", resume=False, ge=1)
    reward_threads: int = option(1, "reward", "CPU threads", "threads of a reward replica", ge=1)
    reward_timeout: float = option(
        120.0, "reward", "seconds", "how long a reward may stay down before the run stops", resume=False, gt=0
    )
    max_failed_share: float = option(
        TRAINING.max_failed_share, "reward", "share of an update's prompts",
        "prompts that may fail to score before the run stops", resume=False, ge=0, lt=1,
    )  # fmt: skip

    # optimiser
    train_batch_size: int = option(
        TRAINING.train_batch_size,
        "optimiser",
        "pairs a device",
        "pairs (a prompt at a timestep) in one forward and backward pass",
        ge=1,
    )
    gradient_accumulation_steps: int | None = option(
        None, "optimiser", "passes an update", "checked against the value that the other options give", "-",
        "prompts_per_update × timesteps_per_rollout / (num_learners × train_batch_size)", ge=1,
    )  # fmt: skip
    max_train_steps: int = option(
        TRAINING.updates, "optimiser", "updates", "optimiser updates in the whole run", resume=False, ge=1
    )
    learning_rate: float = option(
        TRAINING.learning_rate, "optimiser", "-", "AdamW's step size (paper: 5e-6 for SDXL)", gt=0
    )
    lr_scheduler: Literal["constant", "constant_with_warmup", "cosine", "linear"] = option(
        TRAINING.lr_scheduler, "optimiser", "-", "shape of the learning rate over the updates"
    )
    lr_warmup_steps: int = option(
        TRAINING.lr_warmup_steps, "optimiser", "updates", "updates over which the learning rate rises", ge=0
    )
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
    deepspeed_config: str | None = option(
        None, "optimiser", "JSON file", "DeepSpeed configuration (ZeRO stage); 'auto' takes the flags' values", "-",
        "cluster/deepspeed_cpu.json or cluster/deepspeed_gpu.json",
    )  # fmt: skip

    # ray
    ray_address: str | None = option(
        None, "ray", "address", "cluster to join", shown="RAY_ADDRESS, else a local Ray", resume=False
    )
    num_rollout_actors: int = option(
        2, "ray", "processes", "rollout actors; never changes the result", resume=False, ge=1
    )
    rollout_threads: int = option(1, "ray", "CPU threads", "threads of a rollout actor", ge=1)
    num_learners: int = option(1, "ray", "processes", "DeepSpeed learner ranks", ge=1)
    learner_threads: int = option(2, "ray", "CPU threads", "threads of a learner rank", ge=1)
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
    skip_evaluation: bool = option(False, "evaluation", "switch", "train only", resume=False)

    # output
    output_dir: str | None = option(
        None, "output", "folder", "the run folder", shown="runs/rlhf-<date>-<time>", resume=False
    )
    checkpointing_steps: int = option(10, "output", "updates", "updates between checkpoints", resume=False, ge=1)
    checkpoints_total_limit: int | None = option(2, "output", "checkpoints", "checkpoints to keep", resume=False, ge=1)
    resume_from_checkpoint: str | None = option(
        None, "output", "folder or 'latest'", "checkpoint to go on from", shown="start afresh", resume=False
    )

    @field_validator("eval_guidance_scales", mode="before")
    @classmethod
    def _split_scales(cls, value: Any) -> Any:
        """Accept `1 2 3` and `1,2,3`."""
        if isinstance(value, (list, tuple)):
            value = ",".join(str(item) for item in value)
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("eval_guidance_scales")
    @classmethod
    def _check_scales(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not math.isfinite(scale) or scale < 0 for scale in value):
            raise ValueError("every guidance scale must be a finite number of at least 0")
        return value

    @property
    def pairs_per_update(self) -> int:
        """Pairs (a prompt at a timestep: a winner and a loser) in one update, over all learners."""
        return self.prompts_per_update * self.timesteps_per_rollout

    @property
    def accumulation(self) -> int:
        """Forward and backward passes that a learner makes for one update."""
        return self.pairs_per_update // (self.num_learners * self.train_batch_size)

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """Guidance scales to evaluate at: the one the model is sharpened for first, then the others, rising."""
        others = sorted({scale for scale in self.eval_guidance_scales if scale != self.guidance_scale})
        return (self.guidance_scale, *others)

    def method_options(self) -> SharpeningOptions:
        """The part that the method itself reads.

        Returns:
            The options of `sharpening.methods.rlhf.RLHFSharpening`; making them checks their combinations.
        """
        return SharpeningOptions(**{f.name: getattr(self, f.name) for f in fields(SharpeningOptions)})

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
            Every option but those that say where a run is (its folder, its cluster), so that the file can start
            another run and names no machine.
        """
        return self.model_dump(mode="json", exclude={"output_dir", "resume_from_checkpoint", "ray_address"})


def metadata(name: str) -> dict[str, Any]:
    """What `option` noted about a field.

    Args:
        name: The option's name.

    Returns:
        Its group, unit, symbol, shown default, fix and whether a resumed run must keep it.
    """
    extra = RLHFOptions.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return dict(extra)


def must_match() -> list[str]:
    """Names of the options that a resumed run must keep, in their order of declaration."""
    return [name for name in RLHFOptions.model_fields if metadata(name)["resume"]]
