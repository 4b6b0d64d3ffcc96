"""The Serve deployment around one scorer: batches concurrent requests, answers each with its own scores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import serve

from sharpening.rewards import ScoreFn, Scores, reward_class
from sharpening.rewards.requests import Request, check_request, score_requests

MAX_ERRORS = 3
"""Batches in a row that may raise before Serve replaces the replica (a broken CUDA context never recovers)."""


def load_scorer(reward: str, options: dict[str, Any], num_threads: int) -> ScoreFn:
    """Make the scorer in the calling thread, whose number of torch threads is set first.

    Args:
        reward: name or import path of the scorer.
        options: keyword arguments of its class.
        num_threads: torch threads.

    Returns:
        The scorer.
    """
    kind = reward_class(reward)  # before torch: a wrong name fails at once
    import torch

    torch.set_num_threads(num_threads)
    return kind(**options)


class RewardServer:
    """One replica: a scorer, the one thread that runs it, and the batcher in front.

    Callers use `handle.score.remote(images, prompts)`; images travel as uint8 arrays or as object references to
    them, never as pickles over HTTP. Requests that arrive together are scored together, which cannot change a score:
    scorers keep images of a batch apart (see `sharpening.rewards.clip.ClipScorer`).
    """

    def __init__(self, reward: str, scorer_options: dict[str, Any], num_threads: int) -> None:
        """Load the model.

        Args:
            reward: name or import path of the scorer.
            scorer_options: keyword arguments of the scorer's class.
            num_threads: torch threads.
        """
        # Off the event loop: health checks and new requests are answered while images are being scored.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._scorer = self._executor.submit(load_scorer, reward, scorer_options, num_threads).result()
        self._errors_in_a_row = 0
        self._counts = {"requests": 0, "batches": 0, "images": 0}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take batching options from Serve's `user_config`; Serve also calls it when these change.

        Args:
            user_config: `max_batch_requests`, `batch_wait_timeout_s` (seconds).
        """
        self._score_together.set_max_batch_size(int(user_config["max_batch_requests"]))
        self._score_together.set_batch_wait_timeout_s(float(user_config["batch_wait_timeout_s"]))

    async def score(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            Scores of the N images, in the reward's unit.

        Raises:
            ValueError: if the arguments have other shapes or types, or the scorer refuses them.
            Exception: whatever else the scorer raised for this request.
        """  # noqa: DOC502
        check_request(images, prompts)
        answer = await self._score_together((images, prompts))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def _score_together(self, requests: list[Request]) -> list[Scores | Exception]:
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._executor, score_requests, self._scorer, requests)
        failed = all(isinstance(answer, Exception) for answer in answers)
        self._errors_in_a_row = self._errors_in_a_row + 1 if failed else 0
        self._counts["batches"] += 1
        self._counts["requests"] += len(requests)
        self._counts["images"] += sum(len(images) for images, _ in requests)
        return answers

    def statistics(self) -> dict[str, int | float]:
        """What this replica did since it started, and its process id.

        Returns:
            `requests`, `batches`, `images`, `pid`, and what the scorer counts itself, if it has `statistics`.
        """
        own = getattr(self._scorer, "statistics", dict)
        return {**own(), **self._counts, "pid": os.getpid()}

    def check_health(self) -> None:
        """Tell Serve to replace the replica when its scorer only raises.

        Raises:
            RuntimeError: after several batches in a row none of whose requests could be scored.
        """
        if self._errors_in_a_row >= MAX_ERRORS:
            raise RuntimeError(f"the scorer raised in {self._errors_in_a_row} batches in a row")
