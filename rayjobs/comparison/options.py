"""The options of `rayjobs/compare.py`. Nothing heavy is imported."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from rayjobs.options.cluster import RayOptions
from rayjobs.options.declaring import option
from rayjobs.options.model import ModelOptions
from sharpening.methods import METHODS
from sharpening.rewards.grader.endpoint import MODEL, check_url
from sharpening.search import SEARCHES

GROUPS = {
    "model": "the diffusion model that every system starts from",
    "systems": "what is compared",
    "budget": "what each may spend",
    "evaluation": "held-out prompts, all systems on the same noise",
    "ray": "processes and where they run",
    "output": "the comparison's folder",
}
Sweep = Literal["branches", "branch_steps", "temperature"]
SWEPT: dict[str, tuple[float, ...]] = {
    "branches": (1, 2, 3, 4, 8),
    "branch_steps": (1, 2, 3, 4, 8),
    "temperature": (0.0, 1.0, 4.0, 16.0, 1e6),
}
"""Values of each sweep: those of the paper's Tables 2 and 3, and λ from argmax to uniform."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rlhf_guided": ("rlhf", {"guidance_scale": 3.0, "loss_guidance_scale": 3.0, "beta": 60.0, "learning_rate": 4e-5}),
    "rlhf_image": ("rlhf", {"selection": "image"}),
}
"""Systems that are a method with other options than it was tuned with: by name, the method and the options."""
QUICK: dict[str, Any] = {
    "seeds": (0,), "updates": 2, "prompts_per_update": 6, "eval_prompts": 12, "other_prompts": 6, "search_prompts": 6,
    "guidance_scales": (1.0, 3.0), "search_multiples": (1, 4), "diversity_images": 2, "sweeps": (),
}  # fmt: skip
"""What --quick sets: every method and search runs and every part of the report is written; no number means anything."""


class BudgetOptions(ModelOptions, RayOptions):
    """What a job is told that trains many methods at one budget."""

    methods: tuple[str, ...] = option(
        (*METHODS, *VARIANTS), "systems", "names",
        "fine-tuning methods; rlhf_guided is rlhf trained under guidance, rlhf_image picks by images, not by paths",
    )  # fmt: skip
    train_seconds: float = option(
        150.0, "budget", "wall seconds",
        "training time of each method; as many updates as fit, measured once a method on this machine", gt=0,
    )  # fmt: skip
    updates: int | None = option(
        None, "budget", "updates", "the same number of updates for every method instead", shown="by time", ge=1
    )
    prompts_per_update: int | None = option(
        None, "budget", "prompts an update", "examples behind one update", shown="each method's own", ge=1
    )
    steps: int = option(12, "evaluation", "denoising steps", "sampler steps of an image", "T", ge=1)
    num_actors: int = option(2, "ray", "processes", "actors that draw, search and judge", ge=1, resume=False)
    actor_threads: int = option(1, "ray", "CPU threads", "threads of such an actor", ge=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _split_methods(cls, value: Any) -> Any:
        return _split(value)

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _known(value, (*METHODS, *VARIANTS))
        return value


class CompareOptions(BudgetOptions):
    """What a comparison is told."""

    groups: ClassVar[dict[str, str]] = GROUPS
    about: ClassVar[str] = (
        "Trains or searches with every system at the same budget, judges all on the same held-out prompts and noise, "
        "and writes a report. A comparison that was interrupted goes on where it was when it is started again."
    )

    searches: tuple[str, ...] = option(tuple(SEARCHES), "systems", "names", "searches at inference")
    sweeps: tuple[Sweep, ...] = option(
        ("branches", "branch_steps", "temperature"), "systems", "names",
        "options of RLHF sharpening that are varied beside: Tables 2 and 3, and the temperature; 'none' for none",
        "n, m, λ",
    )  # fmt: skip
    trials: str | None = option(
        None, "systems", "JSON file",
        "what rayjobs/trials.py wrote: every method gets the options that won there; 'none': each its own",
        shown="the trials that are shipped",
    )  # fmt: skip
    method_config: str | None = option(
        None, "systems", "JSON or YAML file", "options by method's name, instead of those it was tuned with"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "budget", "integers", "seeds of training, searching and noise")
    sweep_seeds: tuple[int, ...] = option((0,), "budget", "integers", "seeds of the sweeps")
    search_multiples: tuple[int, ...] = option(
        (1, 4, 16), "budget", "× the base model's NFE", "budgets of the searches, an image"
    )
    guidance_scales: tuple[float, ...] = option(
        (1.0, 1.5, 2.0, 3.0, 5.0), "evaluation", "-", "guidance scales; the first one is the main table's", "w"
    )
    eval_prompts: int = option(600, "evaluation", "prompts", "benchmark prompts of the main table", ge=2)
    other_prompts: int = option(
        96, "evaluation", "prompts", "how many of them at the other guidance scales, and with twice the steps", ge=2
    )
    search_prompts: int = option(96, "evaluation", "prompts", "how many of them the searches get", ge=2)
    diversity_images: int = option(
        4, "evaluation", "images a prompt", "images of the other prompts that diversity is measured on", ge=2
    )
    grader_url: str | None = option(
        None, "evaluation", "URL", "OpenAI-compatible endpoint whose multimodal model grades the main table's images; "
        "its key comes from OPENAI_API_KEY", shown="nobody grades", resume=False,
    )  # fmt: skip
    grader_model: str | None = option(None, "evaluation", "id", "the model there that grades", shown=MODEL)
    quick: bool = option(False, "output", "switch", "everything at the smallest scale: shows that it works, no more")
    output_dir: str = option(
        "runs/comparison", "output", "folder", "where runs, judgements and the report are kept", resume=False
    )

    @field_validator("searches", "seeds", "sweep_seeds", "sweeps", "search_multiples", "guidance_scales", mode="before")
    @classmethod
    def _split_lists(cls, value: Any) -> Any:
        return _split(value)

    @field_validator("searches")
    @classmethod
    def _known_searches(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _known(value, tuple(SEARCHES))
        return value

    @field_validator("guidance_scales", "seeds", "search_multiples")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value or any(item < 0 for item in value):
            raise ValueError("at least one number of 0 or more is needed")
        return value

    @field_validator("grader_url")
    @classmethod
    def _is_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else check_url(value)

    @field_validator("grader_model")
    @classmethod
    def _has_endpoint(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("grader_url") is None:
            raise ValueError("there is nobody to ask for it, pass --grader_url as well")
        return value

    def resolved(self) -> "CompareOptions":
        """These options with what --quick decides, and the grader's model where there is a grader."""
        model: dict[str, Any] = {"grader_model": self.grader_model or MODEL} if self.grader_url else {}
        if self.quick and "methods" not in self.model_fields_set:
            model["methods"] = tuple(METHODS)  # a variant shows nothing that its method does not
        return self.model_copy(update=model | (QUICK if self.quick else {}))


class TrialsOptions(BudgetOptions):
    """What a tuning is told."""

    groups: ClassVar[dict[str, str]] = GROUPS | {"systems": "what is tuned", "output": "the tuning's folder"}
    about: ClassVar[str] = (
        "Tries the same number of settings for every method: trains each at the same budget, judges them on the same "
        "validation prompts and noise, and writes what won to trials.json, which rayjobs/compare.py --trials takes. "
        "A tuning that was interrupted goes on where it was when it is started again."
    )

    candidates: str | None = option(
        None, "systems", "JSON or YAML file", "settings by method's name, a list of the same length for each",
        shown="the candidates that are shipped",
    )  # fmt: skip
    seed: int = option(0, "budget", "-", "seed of the trainings and of the validation noise", ge=0)
    validation_prompts: int = option(
        300, "evaluation", "prompts", "validation prompts, none of which is a benchmark prompt", ge=2
    )
    guidance_scale: float = option(1.0, "evaluation", "-", "guidance of the validation images", "w", ge=0)
    output_dir: str = option(
        "runs/trials", "output", "folder", "where runs, judgements and trials.json are kept", resume=False
    )


def _known(names: tuple[str, ...], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown name '{name}', choose among {', '.join(known)}")


def _split(value: Any) -> list[str]:
    """Accept `a b` and `a,b`; `none` is an empty list."""
    if isinstance(value, (list, tuple)):
        value = ",".join(str(item) for item in value)
    parts = [part.strip() for part in str(value).split(",") if part.strip()]
    return [] if parts == ["none"] else parts
