"""The Serve deployment around one scorer: batches concurrent requests, answers each with its own scores."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from reward_servers.batcher import Answer, Batcher
from reward_servers.failures import one_line
from reward_servers.listening import keep_to_loopback
from reward_servers.metrics import RewardMetrics
from reward_servers.options import RewardAppOptions
from sharpening.rewards import RewardUnavailable, ScoreFn, Scores, reward_class
from sharpening.rewards.requests import Request, check_request, score_requests
from sharpening.startup import loading

logger = logging.getLogger(__name__)

MAX_ERRORS = 3
"""Batches in a row that may raise before Serve replaces the replica (a broken CUDA context never recovers)."""

LIMITS = ("max_batch_requests", "max_batch_images", "batch_wait_timeout_s")
WEIGHTS = ("model", "checkpoint", "options")
"""What `user_config` may change of a running replica."""


@loading()
def load_scorer(reward: str, options: dict[str, Any], num_threads: int) -> ScoreFn:
    """Make the scorer in the calling thread, on so many threads.

    Args:
        reward: name or import path of the scorer.
        options: keyword arguments of its class.
        num_threads: torch threads.

    Returns:
        The scorer.
    """
    kind = reward_class(reward)
    use_threads(num_threads)
    return kind(**options)


def use_threads(count: int) -> None:
    """Set the number of threads of what the calling thread computes with torch.

    A reward that computes nothing with it (an endpoint's, one of arrays) does not pay for its import. One that imports
    it later finds the number where torch looks for it.

    Args:
        count: threads.
    """
    os.environ |= {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
    if "torch" in sys.modules:
        import torch  # whole, should another thread be importing it

        torch.set_num_threads(count)


class RewardServer:
    """One replica: a scorer, the one thread that runs it, and the batcher in front.

    Callers use `handle.score.remote(images, prompts)`; images travel as uint8 arrays or as object references to
    them, never as pickles over HTTP. Requests that arrive together are scored together, which cannot change a score:
    scorers keep images of a batch apart (see `sharpening.rewards.clip.ClipScorer`).
    """

    def __init__(self, options: RewardAppOptions) -> None:
        """Start the scorer's thread; Serve calls `reconfigure` next, which loads the model.

        Args:
            options: what is served. `user_config` goes over it.
        """
        keep_to_loopback()
        self._options = options
        self._scorer: ScoreFn | None = None
        self._loaded: dict[str, Any] = {}
        self._refused: str | None = None
        self._errors_in_a_row = 0
        self._counts = {"requests": 0, "batches": 0, "images": 0}
        self._batch_images: Counter[int] = Counter()
        self._metrics = RewardMetrics(options.reward)
        # Off the event loop: health checks and new requests are answered while images are being scored.
        self._batcher = Batcher(self._score_together)
        self._threads_set = False

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over batching limits and weights; Serve calls it before the first request and when they change.

        Other weights are loaded aside, while the old ones go on scoring, and take their place between two batches.
        If they do not load, the old ones stay and `statistics` says why; a replica that has none does not start.

        Args:
            user_config: any of `max_batch_requests`, `max_batch_images`, `batch_wait_timeout_s` (seconds), `model`,
                `checkpoint`, `options`; what is left out is as in the application's options.

        Raises:
            ValueError: if a replica that has no weights yet cannot take it over.
            Exception: whatever the scorer's class raises when it first loads.
        """  # noqa: DOC502
        try:
            options = merged(self._options, user_config)
            wanted = options.scorer_options()
            if self._scorer is None or wanted != self._loaded:
                scorer = await asyncio.to_thread(load_scorer, options.reward, wanted, options.num_threads)
                self._scorer, self._loaded = scorer, wanted
        except Exception as error:
            if self._scorer is None:
                raise
            self._refused = one_line(error)
            logger.error("the new configuration is refused, the old one goes on: %s", self._refused)
            return
        self._refused = None
        self._batcher.limit(options.max_batch_requests, options.max_batch_images, options.batch_wait_timeout_s)

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
        started = time.monotonic()
        try:
            check_request(images, prompts)
        except ValueError:
            self._metrics.failures.inc(max(1, len(prompts)), {"kind": "rejected"})
            raise
        scores = await self._batcher.submit((images, prompts))
        self._metrics.latency(time.monotonic() - started)
        return scores

    def _score_together(self, requests: Sequence[Request]) -> Sequence[Answer]:
        assert self._scorer is not None
        if not self._threads_set:  # in this thread, and not before the scorer has loaded what it computes with
            use_threads(self._options.num_threads)
            self._threads_set = True
        answers = score_requests(self._scorer, requests)
        counts = [len(images) for images, _ in requests]
        self._errors_in_a_row = self._errors_in_a_row + 1 if all(is_broken(answer) for answer in answers) else 0
        self._counts["batches"] += 1
        self._counts["requests"] += len(requests)
        self._counts["images"] += sum(counts)
        self._batch_images[sum(counts)] += 1
        self._metrics.batch(counts, answers)
        return answers

    def statistics(self) -> dict[str, Any]:
        """What this replica did since it started.

        Returns:
            `requests`, `batches`, `images`; `batch_images`, batches by their number of images; `cpu_seconds` of the
            process and its id, `pid`; `reward`, what it serves, and `weights`, the scorer's keyword arguments;
            `refused`, why newer ones were not taken over, or None; and what the scorer counts itself, if it has
            `statistics`.
        """
        own = getattr(self._scorer, "statistics", dict)
        return {
            **own(), **self._counts, "batch_images": dict(self._batch_images), "cpu_seconds": time.process_time(),
            "pid": os.getpid(), "reward": self._options.reward, "weights": self._loaded, "refused": self._refused,
        }  # fmt: skip

    def check_health(self) -> None:
        """Tell Serve to replace the replica when its scorer only raises.

        Raises:
            RuntimeError: if no weights are loaded, or after several batches in a row none of whose requests could be
                scored.
        """
        if self._scorer is None or not self._batcher.alive():
            raise RuntimeError("the scorer is not loaded; user_config must be a mapping, which may be empty")
        if self._errors_in_a_row >= MAX_ERRORS:
            raise RuntimeError(f"the scorer raised in {self._errors_in_a_row} batches in a row")

    def __del__(self) -> None:
        if hasattr(self, "_batcher"):
            self._batcher.close()


def merged(options: RewardAppOptions, user_config: dict[str, Any]) -> RewardAppOptions:
    """An application's options with a `user_config` over them.

    Args:
        options: the application's.
        user_config: what replaces some of them.

    Returns:
        Checked options.

    Raises:
        ValueError: if it holds something that cannot change in a running replica, or a wrong value.
    """  # noqa: DOC502
    for name in user_config:
        if name not in (*LIMITS, *WEIGHTS):
            raise ValueError(f"user_config cannot change '{name}'; it may hold {', '.join((*LIMITS, *WEIGHTS))}")
    return RewardAppOptions.model_validate({**options.model_dump(), **user_config})


def is_broken(answer: Answer) -> bool:
    """Whether an answer speaks against the replica: an error, but not that a service behind the scorer is down."""
    return isinstance(answer, Exception) and not isinstance(answer, RewardUnavailable)
