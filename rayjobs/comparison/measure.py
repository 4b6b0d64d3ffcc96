"""Judging every system: images of trained models and of the base, searches, diversity; each measured once."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayjobs.comparison.grading import grader_options
from rayjobs.comparison.options import CompareOptions
from rayjobs.comparison.pool import Pool, pool
from rayjobs.comparison.results import Store
from rayjobs.comparison.tasks import Answer, DrawTask, Model, SearchTask
from rayjobs.comparison.trainings import COST, SUMMARY, Training, Trainings
from rayjobs.options.reward import RewardOptions
from rayjobs.rewards import reward_plans
from rayjobs.runtime.evaluation import choose
from rayjobs.runtime.ranked import PAIRS
from sharpening.evaluation.comparison.records import SystemCost

BATCH = 24  # images a task
SEARCH_BATCH = 6  # prompts a search task: a search holds many images of each
GRID = 12  # images of each system that are kept to be looked at


class Measurement:
    """What a comparison draws and judges.

    Args:
        options: The comparison's options, resolved.
        base: The model that every system starts from.
        store: Where it is kept.
        trainings: The training runs.
        say: Where progress goes.
    """

    def __init__(
        self, options: CompareOptions, base: Model, store: Store, trainings: Trainings, say: Callable[[str], None]
    ) -> None:  # fmt: skip
        from sharpening.shapes import assets

        benchmark = assets.benchmark()
        self._options, self._base, self._store, self._trainings, self._say = options, base, store, trainings, say
        self._prompts = [index for index, _ in choose(benchmark, options.eval_prompts)]
        self._fewer = [index for index, _ in choose(benchmark, min(options.other_prompts, options.eval_prompts))]
        self._searched = [index for index, _ in choose(benchmark, min(options.search_prompts, options.eval_prompts))]

    def measure(self, trained: Sequence[Training], seeds: Sequence[int], searches: Sequence[str]) -> None:
        """Judge what is not judged yet.

        Args:
            trained: Trainings that are done.
            seeds: Seeds of the base model's images and of the searches.
            searches: Searches.
        """
        models = [t for t in trained if not self._store.has(t.name)]
        bases = [seed for seed in seeds if not self._store.has(f"base-s{seed}")]
        sought = [(name, seed) for seed in seeds for name in searches if not self._store.has(f"{name}-s{seed}")]
        if not (models or bases or sought):
            return
        options = self._options
        with pool(
            "comparison", options.num_actors, options.actor_threads, options,
            reward_plans(RewardOptions()) if sought else (), grader=grader_options(options),
        ) as actors:  # fmt: skip
            for seed in bases:
                self._draw(actors, "base", seed, self._base, None)
            for training in models:
                self._draw(actors, training.system, training.seed, self._trainings.model(training), training)
            for name, seed in sought:
                self._search(actors, name, seed)

    # -- models --------------------------------------------------------------------------------------------------

    def _draw(self, actors: Pool, system: str, seed: int, model: Model, training: Training | None) -> None:
        """Judge a model at every guidance scale, and at twice the steps unguided (a guided image costs twice)."""
        options = self._options
        own, *others = options.guidance_scales

        def tasks(items: list[int], guidance: float, steps: int, **more: Any) -> list[DrawTask]:
            parts = [tuple(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
            return [DrawTask(system, seed, model, part, guidance, steps, **more) for part in parts]

        wanted = tasks(self._prompts, own, options.steps, grade=True)
        judged_own = len(wanted)
        for scale in others:
            wanted += tasks(self._fewer, scale, options.steps)
        wanted += tasks(self._fewer, 1.0, 2 * options.steps)
        diverse = [
            task for image in range(options.diversity_images)
            for task in tasks(self._fewer, own, options.steps, image=image, features=True)
        ]  # fmt: skip
        answers = actors.map([*wanted, *diverse], partial(self._tell, f"judging {system}-s{seed}"))
        judgements = [row for answer in answers[: len(wanted)] for row in answer.judgements]
        features = np.concatenate([answer.features for answer in answers[len(wanted) :] if answer.features is not None])
        features = features.reshape(options.diversity_images, len(self._fewer), -1).swapaxes(0, 1)
        drawn = answers[:judged_own]
        seconds = sum(answer.seconds["draw"] for answer in drawn) / len(self._prompts)
        nfe = sum(answer.nfe for answer in drawn) // len(self._prompts)
        cost = self._cost(system, seed, nfe, seconds, training)
        ungraded = [reason for answer in drawn for reason in answer.ungraded]
        self._store.write(f"{system}-s{seed}", judgements, [cost], features, ungraded)

    def _cost(self, system: str, seed: int, nfe: int, seconds: float, training: Training | None) -> SystemCost:
        if training is None:
            return SystemCost(system, seed, "base", 0, 0.0, 0.0, nfe, seconds, 0, 0)
        folder = self._trainings.folder(training)
        summary, cost = (_read(folder / name) for name in (SUMMARY, COST))
        pairs = (folder / PAIRS).exists()  # a round's time is part of its update's
        before = self._trainings.seconds_before(folder) if pairs else 0.0
        stages = {
            k: v for k, v in cost["seconds"].items() if not k.startswith("evaluate") and k not in ("wall", "wait")
        }
        return SystemCost(
            system, seed, "fine-tuning", training_nfe=sum(v for k, v in cost["nfe"].items() if k in TRAINING_NFE),
            training_seconds=summary["seconds_training"] + before, device_seconds=sum(stages.values()),
            nfe_per_image=nfe, seconds_per_image=seconds, updates=summary["updates"],
            images_scored=cost["images_scored"],
        )  # fmt: skip

    # -- searches ------------------------------------------------------------------------------------------------

    def _search(self, actors: Pool, name: str, seed: int) -> None:
        """Search at every budget that pays for an image."""
        options = self._options
        guidance = options.guidance_scales[0]
        base = options.steps * (2 if guidance > 1 else 1)
        judgements, costs, ungraded = [], [], []
        for multiple in options.search_multiples:
            budget = base * multiple
            parts = [
                tuple(self._searched[start : start + SEARCH_BATCH])
                for start in range(0, len(self._searched), SEARCH_BATCH)
            ]
            tasks = [
                SearchTask(name, seed, self._base, part, budget,
                           {"steps": options.steps, "guidance_scale": guidance},
                           grade=multiple == max(options.search_multiples))
                for part in parts
            ]  # fmt: skip
            try:
                answers = actors.map(tasks, partial(self._tell, f"{name}-s{seed}, {multiple} × NFE"))
            except Exception as error:
                if "BudgetTooSmall" not in type(error).__name__ and "does not pay for one image" not in str(error):
                    raise
                self._say(f"{name} finds no image with {budget} evaluations: left out at {multiple} ×")
                continue
            judgements += [row for answer in answers for row in answer.judgements]
            ungraded += [reason for answer in answers for reason in answer.ungraded]
            costs.append(_search_cost(name, seed, answers, len(self._searched)))
        if judgements:
            self._store.write(f"{name}-s{seed}", judgements, costs, ungraded=ungraded)

    def _tell(self, what: str, done: int, total: int) -> None:
        if done == total or done % 10 == 0:
            self._say(f"{what}: {done}/{total}")


TRAINING_NFE = ("rollout", "reference", "learn", "rank")


def _search_cost(name: str, seed: int, answers: Sequence[Answer], prompts: int) -> SystemCost:
    spent = sum(sum(answer.seconds.values()) for answer in answers)
    nfe = round(sum(answer.nfe for answer in answers) / prompts)
    images = sum(answer.images_scored for answer in answers)
    return SystemCost(name, seed, "search", 0, 0.0, 0.0, nfe, spent / prompts, 0, images)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
