"""Batches of one fixed size, so that what is computed of a row never depends on the rows beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def in_fixed_batches(evaluate: Callable[..., np.ndarray], batch_size: int, *rows: np.ndarray) -> np.ndarray:
    """Evaluate rows in batches of exactly `batch_size`, the last one padded with zeros.

    Args:
        evaluate: one `[batch_size, ...]` for each of `rows` → one answer a row.
        batch_size: rows of a batch.
        *rows: arrays `[N, ...]` of the same N, at least one.

    Returns:
        The N answers.
    """
    count = len(rows[0])
    answers = []
    for start in range(0, count, batch_size):
        parts = [array[start : start + batch_size] for array in rows]
        batches = [np.zeros((batch_size, *part.shape[1:]), part.dtype) for part in parts]
        for batch, part in zip(batches, parts, strict=True):
            batch[: len(part)] = part
        answers.append(evaluate(*batches)[: len(parts[0])])
    return np.concatenate(answers)


def rows_are_independent(evaluate: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> bool:
    """Whether one row has the same answer in every place and beside any neighbours, bit for bit.

    Args:
        evaluate: `[B, ...]` → one answer a row.
        rows: B rows to try it with, all different.

    Returns:
        True if the first row's answer is always the same.
    """
    everywhere = evaluate(np.broadcast_to(rows[:1], rows.shape).copy())
    padded = np.zeros_like(rows)
    padded[0] = rows[0]
    first = evaluate(padded)[0]
    beside = evaluate(rows[::-1].copy())[-1]
    return bool((everywhere == first).all() and (beside == first).all())
