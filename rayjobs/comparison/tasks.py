"""What an evaluation actor is asked: images of a model, or a search with the base model, judged."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sharpening.evaluation.comparison.records import ImageJudgement


@dataclass(frozen=True)
class Model:
    """What images are drawn with.

    Attributes:
        pipeline: The pipeline's folder, or `embedded`.
        resolution: Width and height of images in pixels; `None` for the model's own.
        vae: Folder of the VAE that takes the place of the pipeline's own; `None` for that one.
    """

    pipeline: str
    resolution: int | None = None
    vae: str | None = None


@dataclass(frozen=True)
class DrawTask:
    """Images of held-out prompts, drawn by a model and judged.

    Attributes:
        system: The system's name in the comparison.
        seed: Seed of its training and of the noise: the same noise for every system.
        model: The model.
        items: Places of the prompts in the benchmark, or among the validation prompts.
        guidance_scale: Guidance.
        steps: Sampler steps.
        image: Number of the image of each prompt; each has noise of its own.
        features: Whether features of the images are wanted, instead of judgements.
        grade: Whether the grader is asked, where there is one.
        validation: Whether the prompts are the validation's, which no benchmark prompt is among.
    """

    system: str
    seed: int
    model: Model
    items: tuple[int, ...]
    guidance_scale: float
    steps: int
    image: int = 0
    features: bool = False
    grade: bool = False
    validation: bool = False


@dataclass(frozen=True)
class SearchTask:
    """Images of prompts, searched for with the base model and judged.

    Attributes:
        search: The search's name.
        seed: Seed of the noise.
        model: The base model.
        items: Places of the prompts in the benchmark.
        budget: Denoiser evaluations an image.
        options: Options of the search: steps, guidance.
        keep: Whether the images come back.
        prompts: The prompts themselves, where they are not the benchmark's; their images are not judged.
        grade: Whether the grader is asked, where there is one.
        sample: Scores of a sample of images by each of several rewards: the scale of the search.
    """

    search: str
    seed: int
    model: Model
    items: tuple[int, ...]
    budget: int
    options: dict[str, Any]
    keep: bool = False
    prompts: tuple[str, ...] = ()
    grade: bool = False
    sample: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreTask:
    """Images that nobody searched for, scored by each of several rewards.

    Attributes:
        seed: Seed of the noise.
        model: The base model.
        items: Places of the prompts, one an image.
        prompts: The prompts, one an image.
        images: Numbers of the images among those of their prompts.
        guidance_scale: Guidance.
        steps: Sampler steps.
    """

    seed: int
    model: Model
    items: tuple[int, ...]
    prompts: tuple[str, ...]
    images: tuple[int, ...]
    guidance_scale: float
    steps: int


@dataclass
class Answer:
    """What a task found.

    Attributes:
        judgements: A row an image.
        features: float64 [prompts, D], where they were asked for.
        images: uint8 [prompts, H, W, 3], where they were asked for.
        rewards: Of the images, where a search chose them; NaN where none could be scored.
        failures: Why a prompt has no image, by its place in the benchmark.
        ungraded: Why an image has no grade, a reason each.
        traces: Best reward so far against evaluations an image, a list a prompt, of a search.
        nfe: Denoiser evaluations.
        images_scored: Images sent to the reward.
        seconds: Time, by stage.
        parts: Scores of the images by each of several rewards, in its own unit; `None` where there is none.
    """

    judgements: "list[ImageJudgement]" = field(default_factory=list)
    features: np.ndarray | None = None
    images: np.ndarray | None = None
    rewards: list[float] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    ungraded: list[str] = field(default_factory=list)
    traces: list[list[tuple[int, float]]] = field(default_factory=list)
    nfe: int = 0
    images_scored: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, list[float | None]] = field(default_factory=dict)
