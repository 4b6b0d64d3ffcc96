"""Reading the grader's answer: five finite numbers within the scale, or an error; nothing is guessed or clipped."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from sharpening.rewards.grader.rubric import CRITERIA, HIGHEST, LOWEST


class UnreadableAnswer(Exception):
    """An answer has no five marks; the message says what is wrong with it.

    Attributes:
        reason: why the image has no score if this answer was the last one.
    """

    reason: Literal["unreadable answer", "not finite"] = "unreadable answer"


class NotFiniteMark(UnreadableAnswer):
    """A mark is NaN or infinite, which Python's JSON reads although JSON has no such number."""

    reason = "not finite"


def read_marks(answer: str) -> dict[str, float]:
    """The five marks of an answer.

    Args:
        answer: the model's words: a JSON object, alone or with words or a code fence around it. Keys beside the five
            are ignored.

    Returns:
        Mark by criterion, each from 0 to 100.

    Raises:
        UnreadableAnswer: if there is no such object, or a mark is missing, no number, or off the scale.
    """  # noqa: DOC502
    found = _object_in(answer)
    return {criterion: _mark(found, criterion) for criterion in CRITERIA}


def _object_in(answer: str) -> dict[str, Any]:
    start, end = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError) as error:
        raise UnreadableAnswer(f"it is no JSON object ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise UnreadableAnswer("there is no JSON object in it")
    return found


def _mark(found: dict[str, Any], criterion: str) -> float:
    if criterion not in found:
        raise UnreadableAnswer(f"{criterion} is missing")
    mark = found[criterion]
    if isinstance(mark, bool) or not isinstance(mark, int | float):
        raise UnreadableAnswer(f"{criterion} is no number")
    if isinstance(mark, float) and not math.isfinite(mark):
        raise NotFiniteMark(f"{criterion} is not finite")
    if not LOWEST <= mark <= HIGHEST:
        raise UnreadableAnswer(f"{criterion} is not between {LOWEST:g} and {HIGHEST:g}")
    return float(mark)
