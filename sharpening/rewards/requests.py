"""Requests to a scorer: what they must look like, and how several are answered in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharpening.rewards.base import RewardUnavailable, ScoreFn, Scores

Request = tuple[np.ndarray, Sequence[str]]
"""Images uint8 `[N, H, W, 3]` and their N prompts."""


def check_request(images: np.ndarray, prompts: Sequence[str]) -> None:
    """Refuse what no scorer can read.

    Args:
        images: what should be uint8 `[N, H, W, 3]`.
        prompts: what should be N strings.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise ValueError(f"images must be a uint8 array, not {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must have shape [N, H, W, 3], not {list(images.shape)}")
    count = 1 if isinstance(prompts, str) else len(prompts)
    if isinstance(prompts, str) or count != len(images):
        raise ValueError(f"{len(images)} images need a list of as many prompts, not {count}")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("prompts must be strings")


def score_requests(score: ScoreFn, requests: Sequence[Request]) -> list[Scores | Exception]:
    """Answer several requests in as few calls of the scorer as their image sizes allow.

    Args:
        score: a scorer whose scores do not depend on an image's neighbours.
        requests: checked requests; images of one size share a call.

    Returns:
        For each request its scores, or what the scorer raised for it; a request that it refuses spoils no other.
    """
    answers: list[Scores | Exception] = [Scores(np.zeros(0, np.float32), {})] * len(requests)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, (images, _) in enumerate(requests):
        by_size.setdefault(images.shape[1:], []).append(number)
    for numbers in by_size.values():
        for number, answer in zip(numbers, _score_same_size(score, [requests[i] for i in numbers]), strict=True):
            answers[number] = answer
    return answers


def _score_same_size(score: ScoreFn, requests: list[Request]) -> list[Scores | Exception]:
    images = requests[0][0] if len(requests) == 1 else np.concatenate([images for images, _ in requests])
    prompts = [prompt for _, prompts in requests for prompt in prompts]
    try:
        scores = score(images, prompts)
        if len(scores.values) != len(images):
            raise RuntimeError(f"the scorer gave {len(scores.values)} scores for {len(images)} images")
    except RewardUnavailable as error:  # the reward as a whole: asking for each by itself would take N times as long
        return [error] * len(requests)
    except Exception as error:  # whatever a scorer raises belongs to the request that caused it
        if len(requests) == 1:
            return [error]
        return [answer for request in requests for answer in _score_same_size(score, [request])]
    return [*split_scores(scores, [len(images) for images, _ in requests])]


def split_scores(scores: Scores, counts: Sequence[int]) -> list[Scores]:
    """Scores of several requests that were scored together, apart again.

    Args:
        scores: of all their images, in order.
        counts: images of each.

    Returns:
        Scores of each.
    """
    parts: list[Scores] = []
    start = 0
    for count in counts:
        inside = range(start, start + count)
        failures = {i - start: reason for i, reason in scores.failures.items() if i in inside}
        own = {name: values[start : start + count].copy() for name, values in scores.parts.items()}
        parts.append(Scores(scores.values[start : start + count].copy(), failures, own))
        start += count
    return parts
