"""Batches of one fixed size, so that what is computed of a row never depends on the rows beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def in_fixed_batches(evaluate: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Evaluate rows in batches of exactly `batch_size`, the last one padded with zeros.

    Args:
        evaluate: `[batch_size, ...]` → one answer a row.
        rows: `[N, ...]`, at least one.
        batch_size: rows of a batch.

    Returns:
        The N answers.
    """
    answers = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = np.zeros((batch_size, *rows.shape[1:]), rows.dtype)
        batch[: len(part)] = part
        answers.append(evaluate(batch)[: len(part)])
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
