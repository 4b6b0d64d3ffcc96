"""Evaluation as tasks for the rollout actors: held-out prompts, drawn at fixed seeds, scored and verified."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sharpening.evaluation.summary import PromptResult, judged

if TYPE_CHECKING:
    from sharpening.methods.base import Method
    from sharpening.policies.base import Policy
    from sharpening.rewards.base import Scores
    from sharpening.rewards.combined import Panel
    from sharpening.shapes.benchmark import BenchmarkPrompt

JUDGE = ""  # in a panel, the reward of the training beside those that are only watched


@dataclass(frozen=True)
class EvaluationTask:
    """A batch of held-out prompts at one guidance scale.

    Attributes:
        indices: Places of the prompts in the benchmark; they seed the noise, so before and after are paired.
        prompts: The benchmark's prompts.
        guidance_scale: Classifier-free guidance.
        steps: Sampler steps.
        verify: Whether the embedded world's verifiers can judge the images.
        keep: Indices whose images come back, for the sample grid.
    """

    indices: tuple[int, ...]
    prompts: "tuple[BenchmarkPrompt, ...]"
    guidance_scale: float
    steps: int
    verify: bool
    keep: frozenset[int] = frozenset()


@dataclass
class EvaluationPart:
    """What a task found.

    Attributes:
        task: The task.
        rewards: One a prompt, `None` where scoring failed.
        facts: Verified facts, one tuple a prompt; `None` where nothing was verified.
        images: uint8 [H, W, 3] by index, those that the task keeps.
        nfe: Network evaluations.
        seconds: Seconds by stage.
        version: Version of the weights that drew the images.
        parts: Scores by each of several rewards and by those that are only watched, by name; one a prompt, `None`
            where scoring failed.
        truncated: Prompts that are longer than the model's text encoders read.
    """

    task: EvaluationTask
    rewards: list[float | None]
    facts: list[tuple[bool, ...] | None]
    images: dict[int, np.ndarray] = field(default_factory=dict)
    nfe: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = 0
    parts: dict[str, list[float | None]] = field(default_factory=dict)
    truncated: int = 0


def choose(benchmark: "Sequence[BenchmarkPrompt]", count: int) -> "list[tuple[int, BenchmarkPrompt]]":
    """Prompts to evaluate on: equally many from every category, evenly spread within it.

    Args:
        benchmark: All prompts.
        count: Prompts wanted; all when it is larger than the benchmark.

    Returns:
        (place in the benchmark, prompt), in the benchmark's order.
    """
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(benchmark):
        places.setdefault(prompt.category, []).append(index)
    chosen: list[int] = []
    for position, members in enumerate(places.values()):
        share = min(len(members), count // len(places) + (position < count % len(places)))
        chosen.extend(members[place * len(members) // share] for place in range(share))
    return [(index, benchmark[index]) for index in sorted(chosen)]


def plan(
    chosen: "Sequence[tuple[int, BenchmarkPrompt]]",
    guidance_scales: Sequence[float],
    steps: int,
    batch: int,
    grid: int,
    verify: bool,
) -> list[EvaluationTask]:
    """Cut an evaluation into tasks.

    Args:
        chosen: From `choose`.
        guidance_scales: Scales; the first one's images fill the sample grid.
        steps: Sampler steps.
        batch: Images a task.
        grid: Images for the sample grid, spread over the prompts.
        verify: Whether the verifiers can judge the images.

    Returns:
        Tasks in order.
    """
    grid = min(grid, len(chosen))
    keep = frozenset(chosen[place * len(chosen) // grid][0] for place in range(grid))
    tasks = []
    for scale in guidance_scales:
        for start in range(0, len(chosen), batch):
            indices, prompts = zip(*chosen[start : start + batch], strict=True)
            kept = keep.intersection(indices) if scale == guidance_scales[0] else frozenset()
            tasks.append(EvaluationTask(indices, prompts, scale, steps, verify, kept))
    return tasks


def draw(policy: "Policy", method: "Method", panel: "Panel", task: EvaluationTask, run_seed: int) -> EvaluationPart:
    """Carry a task out.

    Args:
        policy: The model.
        method: Says in which precision images are sampled.
        panel: The reward as `JUDGE`, and those that are only watched by name.
        task: The task.
        run_seed: The run's seed.

    Returns:
        What it found.
    """
    import torch

    from sharpening.methods.collecting import precision
    from sharpening.policies.prompt_length import overlong
    from sharpening.sampling import sample
    from sharpening.seeds import noise

    prompts = [prompt.prompt for prompt in task.prompts]
    nfe, started = policy.nfe, time.perf_counter()
    initial = torch.stack([noise(policy.latent_shape, run_seed, "evaluation", index) for index in task.indices])
    with torch.no_grad():
        condition = policy.encode(prompts)
        with precision(method.options, policy.device):
            x0 = sample(policy, condition, initial.to(policy.device), task.steps, task.guidance_scale)
            images = policy.decode(x0)
    drawn = time.perf_counter()
    answers = panel(images, prompts)
    part = EvaluationPart(
        task,
        rewards=_known(answers[JUDGE].values),
        facts=[
            _verify(image, prompt) if task.verify else None for image, prompt in zip(images, task.prompts, strict=True)
        ],
        images={index: images[i] for i, index in enumerate(task.indices) if index in task.keep},
        nfe=policy.nfe - nfe,
        parts=_parts(panel, answers),
        truncated=overlong(policy, prompts),
    )
    part.seconds = {"evaluate": drawn - started, "evaluate_score": time.perf_counter() - drawn}
    return part


def _parts(panel: "Panel", answers: "dict[str, Scores]") -> dict[str, list[float | None]]:
    """Scores of each of several rewards, where the panel's judge has several, and of the watched ones."""
    from sharpening.rewards.combined import mix_of

    mix = mix_of(panel.scorers[JUDGE])
    parts = {name: answers[JUDGE].parts[name] for name in mix.names} if mix else {}
    watched = {name: scores.values for name, scores in answers.items() if name != JUDGE}
    return {name: _known(values) for name, values in (parts | watched).items()}


def _known(values: np.ndarray) -> list[float | None]:
    """Scores, `None` where there is none."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _verify(image: np.ndarray, prompt: "BenchmarkPrompt") -> tuple[bool, ...]:
    from sharpening.shapes.verifiers import verify

    return tuple(bool(fact) for fact in verify(image, prompt.facts))


def results(parts: Sequence[EvaluationPart], phase: Literal["before", "after"]) -> list[PromptResult]:
    """Rows of an evaluation, one a prompt and guidance scale.

    Args:
        parts: What the tasks found, in order.
        phase: Before or after training.

    Returns:
        The rows.
    """
    rows = []
    for part in parts:
        judged_prompts = zip(part.task.indices, part.task.prompts, part.rewards, part.facts, strict=True)
        for place, (index, prompt, reward, facts) in enumerate(judged_prompts):
            judgement: dict[str, Any] = judged(reward, facts)
            own = {name: values[place] for name, values in part.parts.items()}
            scale = part.task.guidance_scale
            rows.append(PromptResult(index, prompt.prompt, prompt.category, phase, scale, **judgement, parts=own))
    return rows


def grid_images(parts: Sequence[EvaluationPart]) -> dict[int, np.ndarray]:
    """Images for the sample grid.

    Args:
        parts: What the tasks found.

    Returns:
        uint8 [H, W, 3] by place in the benchmark, in its order.
    """
    images = {index: image for part in parts for index, image in part.images.items()}
    return dict(sorted(images.items()))
