"""What `--reward clip:1.0,aesthetic:0.2` means: rewards with weights, by name or import path. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec

from sharpening.rewards import REWARDS

_NUMBER = re.compile(r"[+-]?(\d|\.\d).*|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class TermError(ValueError):
    """A list of rewards cannot be read; the message says what is wrong, then, after a semicolon, what to do."""


@dataclass(frozen=True)
class Term:
    """One reward of a list.

    Attributes:
        name: what tables, files and processes call it: its registered name, or the class of an import path.
        reward: a name in `REWARDS`, or the import path `module:Class` of a scorer.
        weight: finite and not 0; a negative one makes training shun what the reward likes.
    """

    name: str
    reward: str
    weight: float = 1.0


def reward_column(name: str) -> str:
    """What a reward's column is called, in files and metrics.

    Args:
        name: a term's name.

    Returns:
        `reward_embedded_aesthetic` for `embedded-aesthetic`.
    """
    return "reward_" + re.sub(r"\W", "_", name)


def parse_terms(text: str) -> tuple[Term, ...]:
    """Read a list of rewards with weights.

    Args:
        text: items with commas between them, each a registered name or an import path `package.module:Class`, and
            after another colon a weight; without one it weighs 1.

    Returns:
        The rewards in their order; nothing is imported.

    Raises:
        TermError: if the list is empty, an item cannot be read, a name is not known, a weight is 0 or not finite, or
            two rewards would be called the same.
    """  # noqa: DOC502
    terms = tuple(_term(item.strip()) for item in text.split(","))
    taken: dict[str, Term] = {}
    for term in terms:
        other = taken.setdefault(reward_column(term.name), term)
        if other is not term:
            _refuse_twins(other, term)
    return terms


def parse_names(text: str) -> tuple[Term, ...]:
    """Read a list of rewards without weights.

    Args:
        text: as for `parse_terms`; nothing at all is an empty list.

    Returns:
        The rewards in their order.

    Raises:
        TermError: if an item has a weight, and as `parse_terms` does.
    """
    terms = parse_terms(text) if text.strip() else ()
    for item, term in zip(text.split(","), terms, strict=False):
        if item.strip() != term.reward:
            raise TermError(f"'{item.strip()}' has a weight, which means nothing here; pass {term.reward}")
    return terms


def worded(terms: Sequence[Term]) -> str:
    """Rewards with weights as people read them.

    Args:
        terms: the rewards.

    Returns:
        Such as `clip + 0.2 · embedded-aesthetic`.
    """
    words = ""
    for term in terms:
        size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} · "
        sign = ("-" if term.weight < 0 else "") if not words else (" - " if term.weight < 0 else " + ")
        words += f"{sign}{size}{term.name}"
    return words


def check_importable(term: Term) -> None:
    """Refuse an import path whose module is nowhere to be found; neither it nor a package around it is imported.

    Args:
        term: the reward.

    Raises:
        TermError: if there is no such module. Whether it has the class, only importing it can tell.
    """
    module, _, attribute = term.reward.partition(":")
    if not attribute:
        return
    first, *rest = module.split(".")
    spec, name = find_spec(first), first
    for part in rest:
        inside = spec.submodule_search_locations if spec else None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(inside)) if inside else None
    if spec is None:
        raise TermError(f"there is no module {module} for '{term.reward}'; install it, or put its folder on PYTHONPATH")


def _term(item: str) -> Term:
    if not item:
        raise TermError("a reward's name is missing; pass names with commas between them")
    reward, weight = item, 1.0
    head, colon, tail = item.rpartition(":")
    if colon and (head in REWARDS or ":" in head or _NUMBER.fullmatch(tail)):
        reward, weight = head, _weight(item, tail)
    if reward in REWARDS:
        return Term(reward, reward, weight)
    if _PATH.fullmatch(reward):
        return Term(reward.rpartition(":")[2], reward, weight)
    raise TermError(f"unknown reward '{reward}'; choose one of {', '.join(REWARDS)}, or pass package.module:Class")


def _weight(item: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise TermError(f"the weight '{text}' of '{item}' is no number; pass NAME or NAME:NUMBER") from None
    if not math.isfinite(weight) or weight == 0:
        raise TermError(f"the weight of '{item}' must be a finite number other than 0; correct it or leave it out")
    return weight


def _refuse_twins(one: Term, other: Term) -> None:
    if one.reward == other.reward:
        raise TermError(f"the reward '{one.reward}' is named twice; name it once, with the sum of the weights")
    raise TermError(f"'{one.reward}' and '{other.reward}' would both be called {other.name}; rename one of the classes")
