"""The evaluation actor: draws or searches images of held-out prompts and has them judged."""

import time
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.comparison.tasks import Answer, DrawTask, Model, ScoreTask, SearchTask

if TYPE_CHECKING:
    from sharpening.evaluation.comparison.records import ImageJudgement
    from sharpening.rewards.base import ScoreFn
    from sharpening.shapes.benchmark import BenchmarkPrompt


class EvaluationActor:
    """Holds one model at a time; every call names the model, so a restarted actor goes on as if nothing had been.

    Args:
        name: For logs and errors.
        device: `cpu` or `cuda`.
        threads: torch threads.
        score: The reward that searches search with; `None` where nobody searches.
        grader: Options of the multimodal grader; `None` where nothing is graded.
    """

    def __init__(
        self, name: str, device: str, threads: int, score: "ScoreFn | None", grader: dict[str, Any] | None = None
    ) -> None:
        import torch

        from sharpening.evaluation.judges import Judges
        from sharpening.rewards import load_reward
        from sharpening.shapes import assets

        torch.set_num_threads(threads)
        self._name, self._device, self._score = name, device, score
        self._judges, self._benchmark = Judges(), assets.benchmark()
        self._grader = load_reward("grader", **grader) if grader else None
        self._loaded: tuple[Model, Any] | None = None

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and dashboard."""
        return self._name

    def ready(self) -> str:
        """Answer once the models are loaded."""
        return self._name

    def draw(self, task: DrawTask) -> Answer:
        """Draw and judge images.

        Args:
            task: What to draw.

        Returns:
            Judgements or features.

        Raises:
            RewardUnavailable: If the grader stays down.
        """  # noqa: DOC502
        import torch

        from sharpening.sampling import sample
        from sharpening.seeds import noise

        policy, prompts = self._policy(task.model), self._prompts(task.items, task.validation)
        nfe, started = policy.nfe, time.perf_counter()
        draws = [noise(policy.latent_shape, task.seed, "comparison", item, task.image) for item in task.items]
        condition = policy.encode([prompt.prompt for prompt in prompts])
        x0 = sample(policy, condition, torch.stack(draws), task.steps, task.guidance_scale)
        images = policy.decode(x0)
        answer = Answer(nfe=policy.nfe - nfe, seconds={"draw": time.perf_counter() - started})
        if task.features:
            answer.features = self._judges.features(images)
            return answer
        each = answer.nfe // len(prompts)
        answer.judgements, answer.ungraded = self._judge(
            images, task.items, prompts, task.grade, system=task.system, seed=task.seed,
            guidance_scale=task.guidance_scale, steps=task.steps, nfe=each,
        )  # fmt: skip
        return answer

    def search(self, task: SearchTask) -> Answer:
        """Search for images and judge them.

        Args:
            task: What to search for.

        Returns:
            Judgements, rewards, and what the search cost.

        Raises:
            RewardUnavailable: If the reward or the grader stays down.
        """  # noqa: DOC502
        from sharpening.rewards.combined import CombinedScore
        from sharpening.search import load_search
        from sharpening.search.base import SearchSeeds

        assert self._score is not None
        score = self._score
        if task.sample and isinstance(score, CombinedScore):
            score = score.beside({name: np.asarray(values) for name, values in task.sample.items()})
        policy = self._policy(task.model)
        search = load_search(task.search, **task.options)
        texts = list(task.prompts) or [prompt.prompt for prompt in self._prompts(task.items)]
        found = search.search(policy, score, texts, task.budget, SearchSeeds(task.seed, task.items))
        kept = [row for row in range(len(texts)) if row not in found.failures and not task.prompts]
        items = tuple(task.items[row] for row in kept)
        judgements, ungraded = self._judge(
            found.images[kept], items, self._prompts(items), task.grade, system=task.search, seed=task.seed,
            guidance_scale=task.options["guidance_scale"], steps=task.options["steps"], nfe=task.budget,
        )  # fmt: skip
        return Answer(
            judgements=judgements,
            ungraded=ungraded,
            images=found.images if task.keep else None,
            rewards=[float(reward) for reward in found.rewards],
            failures={task.items[row]: reason for row, reason in found.failures.items()},
            traces=found.trace,
            nfe=found.nfe,
            images_scored=found.images_scored,
            seconds=found.seconds,
            parts=self._parts(found.images, texts, found.failures) if isinstance(score, CombinedScore) else {},
        )

    def score(self, task: ScoreTask) -> Answer:
        """Draw images and have each of several rewards score them.

        Args:
            task: What to draw.

        Returns:
            The scores.

        Raises:
            RewardUnavailable: If a reward stays down.
        """  # noqa: DOC502
        import torch

        from sharpening.sampling import sample
        from sharpening.seeds import noise

        policy = self._policy(task.model)
        nfe, places = policy.nfe, zip(task.items, task.images, strict=True)
        draws = [noise(policy.latent_shape, task.seed, "scale", item, image) for item, image in places]
        x0 = sample(policy, policy.encode(task.prompts), torch.stack(draws), task.steps, task.guidance_scale)
        images = policy.decode(x0)
        return Answer(nfe=policy.nfe - nfe, images_scored=len(images), parts=self._parts(images, task.prompts))

    def _parts(
        self, images: np.ndarray, prompts: Sequence[str], missing: Container[int] = ()
    ) -> dict[str, list[float | None]]:
        """Scores by each of several rewards; `None` where there is no image, or none for it."""
        assert self._score is not None
        parts = self._score(images, prompts).parts
        return {
            name: [float(v) if row not in missing and np.isfinite(v) else None for row, v in enumerate(values)]
            for name, values in parts.items()
        }

    def _policy(self, model: Model) -> Any:
        from rayjobs.runtime.models import pipeline_folder
        from sharpening.policies import load_policy

        if self._loaded is None or self._loaded[0] != model:
            folder = pipeline_folder(model.pipeline)
            policy = load_policy(folder, self._device, resolution=model.resolution, vae=model.vae)
            self._loaded = (model, policy)
        return self._loaded[1]

    def _prompts(self, items: Sequence[int], validation: bool = False) -> "list[BenchmarkPrompt]":
        from sharpening.shapes import assets

        known = assets.validation_benchmark() if validation else self._benchmark
        return [known[item] for item in items]

    def _judge(
        self,
        images: np.ndarray,
        items: Sequence[int],
        prompts: "Sequence[BenchmarkPrompt]",
        grade: bool,
        **setting: Any,
    ) -> "tuple[list[ImageJudgement], list[str]]":
        """Judgements of images, and why some of them have no grade."""
        from sharpening.evaluation.comparison.records import ImageJudgement

        ungraded: list[str] = []
        judged = self._judges.judge(images, prompts) if items else []
        if grade and items and self._grader:
            grades = self._grader(images, [prompt.prompt for prompt in prompts])
            ungraded = list(grades.failures.values())
            for i, row in enumerate(judged):
                row["grader"] = None if i in grades.failures else float(grades.values[i])
        judgements = [
            ImageJudgement(prompt=item, category=prompt.category, **setting, **row)
            for item, prompt, row in zip(items, prompts, judged, strict=True)
        ]
        return judgements, ungraded
