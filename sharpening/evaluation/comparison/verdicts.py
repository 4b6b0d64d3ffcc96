"""Verdicts in sentences, computed from the intervals: a method that loses is said to lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sharpening.evaluation.comparison.columns import COLUMNS
from sharpening.evaluation.comparison.estimate import MIN_SEEDS, Estimate, Word
from sharpening.evaluation.comparison.records import Setting
from sharpening.evaluation.comparison.results import ComparisonResults
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import mean_cost
from sharpening.evaluation.comparison.systems import BASE, OURS, names_of, title_of

RIVALS = ("base", "standard", "ddpo", "d3po")
"""Whom RLHF sharpening must be above at equal training seconds."""
SAME_SECONDS = 1.1
"""Training times within this factor count as equal."""


@dataclass(frozen=True)
class Verdict:
    """One system against another in one column.

    Attributes:
        system: the system.
        other: the one it is compared with.
        column: a name of `COLUMNS`.
        difference: mean paired difference, system minus other.
        apart: whether the intervals of the two means do not touch either, a harder test than the paired one.
        sentence: the verdict in words.
    """

    system: str
    other: str
    column: str
    difference: Estimate
    apart: bool
    sentence: str

    @property
    def word(self) -> Word:
        """Above, below, not told apart or undecided."""
        return self.difference.word


@dataclass(frozen=True)
class Claim:
    """Something that must come out.

    Attributes:
        text: the claim.
        holds: whether it does; `None` where what was measured does not decide it.
        reason: why.
    """

    text: str
    holds: bool | None
    reason: str

    @property
    def sentence(self) -> str:
        """The claim with its outcome."""
        outcome = {True: "holds", False: "does not hold", None: "is not decided"}[self.holds]
        return f"{self.text}: {outcome}. {self.reason}"


def verdict(system: Setting, other: Setting, column: str, scores: Scores) -> Verdict | None:
    """Compare two systems on the same prompts and noise seeds.

    Args:
        system: the one that the verdict is about.
        other: the one it is compared with.
        column: a name of `COLUMNS`.
        scores: the judgements.

    Returns:
        The verdict; `None` where they have too few images in common.
    """
    gap = scores.difference(system, other, column)
    means = [scores.estimate(setting, column) for setting in (system, other)]
    if gap is None or means[0] is None or means[1] is None:
        return None
    apart = means[0].low > means[1].high or means[1].low > means[0].high
    return Verdict(system.system, other.system, column, gap, apart, _sentence(system, other, column, gap, apart))


def _sentence(system: Setting, other: Setting, column: str, gap: Estimate, apart: bool) -> str:
    what, digits = COLUMNS[column], COLUMNS[column].decimals
    name = what.meaning.split(":")[0] if what.field == "all" else what.meaning
    numbers = f"{gap.mean:+.{digits}f} [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]"
    if gap.word == "undecided":
        ending = f"undecided ({gap.seeds} of {MIN_SEEDS} seeds)"
    elif gap.word == "not told apart":
        ending = "not told apart"
    else:
        ending = f"**{gap.word}**" + ("; the intervals of the two means are apart too" if apart else "")
    size = f"{gap.seeds} seeds × {gap.prompts} prompts"
    return f"{title_of(system.system)} against {title_of(other.system)}: {name} {numbers} ({size}): {ending}."


def verdicts(settings: Mapping[str, Setting], scores: Scores, column: str) -> list[Verdict]:
    """RLHF sharpening against every other system, then every other system against the base model.

    Args:
        settings: the main table's setting by system.
        scores: the judgements.
        column: a name of `COLUMNS`.

    Returns:
        Those that can be made, in the order of the tables.
    """
    pairs = [(OURS, other) for other in settings if other != OURS]
    pairs += [(system, BASE) for system in settings if system not in (OURS, BASE)]
    found = [verdict(settings[a], settings[b], column, scores) for a, b in pairs if a in settings and b in settings]
    return [one for one in found if one is not None]


def claims(results: ComparisonResults, settings: Mapping[str, Setting], found: Sequence[Verdict]) -> list[Claim]:
    """The two claims that the comparison is run for.

    Args:
        results: everything measured.
        settings: the main table's setting by system.
        found: from `verdicts`, of the overall column.

    Returns:
        Both claims with their outcome.
    """
    ours = {one.other: one for one in found if one.system == OURS}
    return [_training_claim(results, settings, ours), _search_claim(results, settings, ours)]


def _training_claim(results: ComparisonResults, settings: Mapping[str, Setting], ours: Mapping[str, Verdict]) -> Claim:
    names = ", ".join(title_of(name) for name in RIVALS)
    score = COLUMNS[results.overall].meaning.split(":")[0]
    text = f"At equal training seconds RLHF sharpening's {score} is above {names}"
    if OURS not in settings:
        return Claim(text, None, f"{title_of(OURS)} was not judged.")
    lost = [name for name in RIVALS if name in ours and ours[name].word in ("below", "not told apart")]
    absent = [name for name in RIVALS if name not in ours]
    unsure = [name for name in RIVALS if name in ours and ours[name].word == "undecided"]
    unfair = _trained_less(results, settings)
    reasons = []
    if lost:
        words = {"below": "below", "not told apart": "not told apart from"}
        reasons.append("; ".join(f"{words[ours[name].word]} {title_of(name)}" for name in lost))
    for group, why in (
        (absent, "not judged"), (unsure, f"fewer than {MIN_SEEDS} seeds"),
        (unfair, "trained for fewer seconds, or for an unknown time"),
    ):  # fmt: skip
        if group:
            reasons.append(f"{', '.join(title_of(name) for name in group)}: {why}")
    holds = False if lost else None if absent or unsure or unfair else True
    overlap = [title_of(name) for name in RIVALS if name in ours and not ours[name].apart]
    if holds and overlap:
        reasons.append(
            f"every paired interval is above zero; the means' own intervals overlap for {', '.join(overlap)}"
        )
    elif holds:
        reasons.append("every paired interval is above zero, and the means' own intervals are apart")
    reason = "; ".join(reasons)
    return Claim(text, holds, reason[0].upper() + reason[1:] + ".")


def _trained_less(results: ComparisonResults, settings: Mapping[str, Setting]) -> list[str]:
    """Fine-tuned rivals that had clearly less training time than RLHF sharpening, or whose time is not known."""
    seconds = {}
    for name in (OURS, *RIVALS):
        cost = mean_cost(results.costs, settings[name]) if name in settings else None
        seconds[name] = cost["training_seconds"] if cost else float("nan")
    rivals = [name for name in RIVALS if name != BASE and name in settings]
    return [name for name in rivals if not seconds[name] * SAME_SECONDS >= seconds[OURS]]


def _search_claim(results: ComparisonResults, settings: Mapping[str, Setting], ours: Mapping[str, Verdict]) -> Claim:
    multiple = results.search_multiple
    text = f"RLHF sharpening at 1× reaches what the best search reaches with {multiple:g}× the base model's NFE"
    searches = [name for name in names_of("search") if name in ours]
    if not searches:
        return Claim(text, None, "No search was judged beside it.")
    best = min(searches, key=lambda name: ours[name].difference.mean)  # the search ours gains least on
    gap = ours[best].difference
    times = settings[best].nfe / settings[BASE].nfe if BASE in settings else float("nan")
    reason = (
        f"The best search is {title_of(best)}, at {times:.3g}×; against it {gap.mean:+.3f} "
        f"[{gap.low:+.3f}, {gap.high:+.3f}], {gap.word}. It was picked on the same images, which favours it."
    )
    if gap.word == "below":
        return Claim(text, False, reason)
    dearer = BASE not in settings or settings[OURS].nfe > settings[BASE].nfe
    if gap.word == "undecided" or gap.mean < 0 or dearer or times < multiple / 1.5:
        return Claim(text, None, reason)
    return Claim(text, True, reason)
