"""The grader as a reward: images side by side, each pair of image and prompt graded once, failures by their reason."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from openai import AsyncOpenAI

from sharpening.rewards.base import RewardUnavailable, Scores
from sharpening.rewards.grader.cache import ScoreCache, key_of
from sharpening.rewards.grader.endpoint import MODEL, Endpoint
from sharpening.rewards.grader.examiner import Examiner, Patience
from sharpening.rewards.grader.failures import NoGrade
from sharpening.rewards.grader.usage import GraderUsage
from sharpening.rewards.requests import check_request

logger = logging.getLogger(__name__)

FEWEST_SILENT = 4
"""Images in a row without an answer, at least, before the endpoint is taken to be down for the rest of a call."""

Outcome = float | NoGrade


class GraderScorer:
    """The paper's MLLM grader: mean of five marks by a multimodal model, 0 to 100. Its own tables show it over 100.

    The judge is external, so scores are as reproducible as it is: temperature 0 and a fixed seed are sent where the
    endpoint takes them, but no endpoint promises equal answers. Within one scorer the same image with the same prompt
    has one score, as long as it is cached.

    A call blocks, and runs an event loop of its own meanwhile: it may be made from any thread, several at a time taking
    turns, but not from inside a running event loop. The API key is read from the environment at each call and kept
    nowhere. A pickled scorer is made anew where it arrives, with the key of that place.
    """

    def __init__(
        self,
        model: str = MODEL,
        device: str = "cpu",
        batch_size: int = 32,
        *,
        base_url: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout_s: float = 60.0,
        deadline_s: float = 180.0,
        max_attempts: int = 8,
        max_answers: int = 3,
        detail: Literal["auto", "low", "high"] = "auto",
        seed: int = 0,
        prompt_price: float | None = None,
        completion_price: float | None = None,
        cache_size: int = 65_536,
    ) -> None:
        """Check the options; nothing is sent yet.

        Args:
            model: the model's id at the endpoint.
            device: taken as every scorer takes it; nothing is computed here.
            batch_size: taken as every scorer takes it; `concurrency` says how many images are graded at a time.
            base_url: the endpoint; None for that of the variable `OPENAI_BASE_URL`, or else OpenAI's.
            api_key_variable: environment variable that holds the API key.
            concurrency: images that are asked for at the same time.
            timeout_s: seconds of one request.
            deadline_s: seconds of one image, retries and pauses included.
            max_attempts: requests for one answer.
            max_answers: answers of one image, where they cannot be read.
            detail: resolution at which the model looks, as OpenAI defines it; images of the embedded world are small
                enough for "low".
            seed: seed of the model's sampling.
            prompt_price: price of a million prompt tokens, in any currency, for the account of costs.
            completion_price: that of a million completion tokens.
            cache_size: scores that are kept, of the pairs of image and prompt seen last.

        Raises:
            ValueError: if an option cannot be meant.
            RewardMisconfigured: if the API key is missing or malformed.
        """  # noqa: DOC502
        self._options: dict[str, Any] = {
            "model": model, "base_url": base_url, "api_key_variable": api_key_variable, "concurrency": concurrency,
            "timeout_s": timeout_s, "deadline_s": deadline_s, "max_attempts": max_attempts,
            "max_answers": max_answers, "detail": detail, "seed": seed, "prompt_price": prompt_price,
            "completion_price": completion_price, "cache_size": cache_size,
        }  # fmt: skip
        for name in ("concurrency", "timeout_s", "deadline_s", "max_attempts", "max_answers", "cache_size"):
            if not self._options[name] > 0:
                raise ValueError(f"{name} is {self._options[name]}; pass a number above 0")
        del device, batch_size
        self._endpoint = Endpoint.of(model, base_url, api_key_variable)
        self._usage = GraderUsage(prompt_price=prompt_price, completion_price=completion_price)
        patience = Patience(timeout_s, deadline_s, max_attempts, max_answers)
        self._examiner = Examiner(self._endpoint, patience, detail, seed, self._usage)
        self._concurrency, self._cache = concurrency, ScoreCache(cache_size)
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(GraderScorer, **self._options), ()

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts; see `score`."""
        return self.score(images, prompts)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            float32 `[N]`, mean of the five marks, 0 to 100; NaN where there is none, with the reason in `failures`.

        Raises:
            ValueError: if the arguments have other shapes or types.
            RewardMisconfigured: if the endpoint refuses key or model.
            RewardUnavailable: if it gave no answer for any image.
        """  # noqa: DOC502
        check_request(images, prompts)
        keys = [key_of(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        with self._turn:
            requests = self._usage.requests
            known = {key: score for key in keys if (score := self._cache.get(key)) is not None}
            pairs = {key: (images[i], prompts[i]) for i, key in enumerate(keys) if key not in known}
            graded = asyncio.run(self._grade_all(pairs)) if pairs else {}
            outcomes: list[Outcome] = [known[key] if key in known else graded[key] for key in keys]
            scores = self._scores(outcomes)
            self._usage.images += len(keys)
            self._usage.cached += len(keys) - len(pairs)
            self._usage.failures.update(scores.failures.values())
            if self._usage.requests != requests:
                logger.info("grader %s: %s", self._endpoint.model, self.usage())
        if _all_silent(outcomes):
            raise RewardUnavailable(
                f"the grader at {self._endpoint.url} gave no answer for any of {len(keys)} images: {outcomes[0]}"
            )
        return scores

    def check(self) -> None:
        """Have one small image graded, so that a wrong URL, key or model shows before anything heavy starts.

        Raises:
            RewardUnavailable: if there is no grade; the message says why.
        """
        scores = self.score(np.full((1, 64, 64, 3), 128, np.uint8), ["a plain grey square"])
        if scores.failures:
            raise RewardUnavailable(
                f"the grader at {self._endpoint.url} gave no grade for a grey image ({scores.failures[0]}); "
                f"see whether {self._endpoint.model} reads images and answers in JSON"
            )

    def usage(self) -> GraderUsage:
        """What was asked since the scorer was made, and what it cost; a copy."""
        return replace(self._usage, failures=Counter(self._usage.failures))

    def statistics(self) -> dict[str, int | float]:
        """`usage` as flat numbers, for whoever reports them."""
        return self._usage.statistics()

    async def _grade_all(self, pairs: dict[bytes, tuple[np.ndarray, str]]) -> dict[bytes, Outcome]:
        """Grade pairs of image and prompt side by side; what stops everything ends the other questions too."""
        free, silence = asyncio.Semaphore(self._concurrency), _Silence(max(FEWEST_SILENT, self._concurrency))

        async def outcome_of(key: bytes) -> Outcome:
            async with free:
                if silence.reached:
                    return NoGrade("unavailable", "not asked: the images before it had no answer")
                outcome: Outcome
                try:
                    outcome = score = await self._examiner.grade(client, *pairs[key])
                    self._cache.put(key, score)  # at once: the rest of the call may still be given up
                except NoGrade as error:
                    outcome = error
                silence.hear(outcome)
                return outcome

        # `max_retries`: the examiner's retries know the deadline. `timeout`: so do its time-outs.
        secret, url = self._endpoint.key(), self._endpoint.url
        async with AsyncOpenAI(api_key=secret, base_url=url, max_retries=0, timeout=None) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {key: group.create_task(outcome_of(key)) for key in pairs}
            except ExceptionGroup as errors:
                first = errors.exceptions[0]
            else:
                return {key: task.result() for key, task in tasks.items()}
        raise first

    def _scores(self, outcomes: Sequence[Outcome]) -> Scores:
        values = np.array([o if isinstance(o, float) else np.nan for o in outcomes], np.float32)
        failed = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, NoGrade)}
        if failed:
            told = {outcome.reason: str(outcome) for outcome in failed.values()}
            counts = Counter(outcome.reason for outcome in failed.values())
            words = "; ".join(f"{count} {reason} ({told[reason]})" for reason, count in counts.items())
            logger.warning("grader %s: %d of %d images have no grade: %s", self._endpoint.model, len(failed),
                           len(outcomes), words)  # fmt: skip
        return Scores(values, {i: outcome.reason for i, outcome in failed.items()})


class _Silence:
    """Notices that an endpoint is down, so that the images of a large call do not wait out a deadline each."""

    def __init__(self, limit: int) -> None:
        self._limit, self._in_a_row = limit, 0

    @property
    def reached(self) -> bool:
        """Whether the rest of the call need not be asked for."""
        return self._in_a_row >= self._limit

    def hear(self, outcome: Outcome) -> None:
        """Take note of one image's outcome."""
        self._in_a_row = self._in_a_row + 1 if _is_silent(outcome) else 0


def _is_silent(outcome: Outcome) -> bool:
    return isinstance(outcome, NoGrade) and outcome.reason in ("unavailable", "timeout")


def _all_silent(outcomes: Sequence[Outcome]) -> bool:
    """Whether the endpoint is down: no image was answered, and not only because answers take long."""
    down = any(isinstance(outcome, NoGrade) and outcome.reason == "unavailable" for outcome in outcomes)
    return down and all(map(_is_silent, outcomes))
