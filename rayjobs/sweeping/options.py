"""The options of `rayjobs/sweep.py`. Nothing heavy is imported."""

from typing import Any, ClassVar, Literal

from rayjobs.options import option
from rayjobs.options.cluster import RayOptions

GROUPS = {
    "space": "what is varied: values, or a range LOW..HIGH that a search draws from",
    "search": "which points of the space are tried, and how long",
    "ray": "processes and where they run",
    "output": "the sweep's folder",
}
SWEPT = ("branches", "temperature", "branch_steps", "beta", "reward_scale", "learning_rate")
"""Options of the job that a sweep can vary."""
QUICK: dict[str, Any] = {
    "branches": ("2", "3"), "temperature": ("0", "4"), "num_samples": 4, "grace_updates": 2,
}  # fmt: skip
QUICK_JOB = (
    "--max_train_steps", "4", "--prompts_per_update", "8", "--rollout_batch_size", "4", "--checkpointing_steps", "2",
    "--validation_steps", "2", "--validation_prompts", "12", "--eval_prompts", "24", "--eval_guidance_scales", "1",
)  # fmt: skip
"""What --quick sets: four trials that show how a sweep works; no number means anything."""


class SweepOptions(RayOptions):
    """What a sweep is told; the job's own flags stand behind `--`."""

    groups: ClassVar[dict[str, str]] = GROUPS
    about: ClassVar[str] = (
        "Trains with every point of a space of options, judges each on the same held-out prompts and noise, and says "
        "which was best. The job's own flags stand behind --: python rayjobs/sweep.py --branches 2 4 -- "
        "--max_train_steps 20"
    )

    branches: tuple[str, ...] = option(("2", "3", "4"), "space", "branches", "branches of a prompt", "n")
    temperature: tuple[str, ...] = option(
        ("0", "1", "4", "16"), "space", "reward units", "temperature of the path integral; 0 is argmax", "λ"
    )
    branch_steps: tuple[str, ...] = option((), "space", "denoising steps", "steps of a branch", "m", "the job's")
    beta: tuple[str, ...] = option((), "space", "-", "strength of the reference model in the loss", "β", "the job's")
    reward_scale: tuple[str, ...] = option((), "space", "1 / reward unit", "weight of the gap", "-", "the job's")
    learning_rate: tuple[str, ...] = option((), "space", "-", "AdamW's step size", "-", "the job's")

    search: Literal["grid", "random", "optuna"] = option(
        "grid", "search", "-", "all points; points drawn by chance; or drawn near what was good (TPE)"
    )
    num_samples: int = option(12, "search", "points", "points that 'random' and 'optuna' draw", ge=1)
    seeds: tuple[int, ...] = option((0,), "search", "integers", "run seeds of every point")
    scheduler: Literal["none", "asha"] = option(
        "none", "search", "-", "'asha' ends runs early whose held-out reward is among the lower ones of their rung"
    )
    grace_updates: int = option(6, "search", "updates", "updates that 'asha' leaves every run", ge=1)
    reduction_factor: int = option(3, "search", "-", "one in so many goes on at each of its rungs", ge=2)

    max_concurrent_trials: int | None = option(
        None, "ray", "runs", "runs at a time", shown="as many as the cluster has CPUs or GPUs for", ge=1
    )
    max_trial_failures: int = option(1, "ray", "restarts", "times that a run which failed goes on", ge=0)

    quick: bool = option(False, "output", "switch", "four runs of a few updates: shows that it works, no more")
    output_dir: str | None = option(None, "output", "folder", "the sweep's folder", shown="runs/sweep-<date>-<time>")
    resume: bool = option(False, "output", "switch", "go on with the sweep in --output_dir; its options are kept")
