"""Over-optimisation: does a system raise the reward while the verifiers, which it never saw, fall?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.systems import BASE, SYSTEMS, title_of

REWARD, VERIFIERS = "clip", "facts"
"""What every system is trained on or searches with, and the finest measure of what it is for."""

Status = Literal["diverging", "quiet", "undecided"]


@dataclass(frozen=True)
class Divergence:
    """One system at one guidance scale against the base model there, on the same held-out prompts and noise.

    A run that is watched has an alarm of its own on the way (`sharpening.evaluation.comparison.alarm`), from a few
    prompts a look. This is the same question at the end, with all prompts and seeds of the comparison.

    Attributes:
        system: the system.
        guidance_scale: w.
        reward: mean paired difference of the reward, in its unit.
        verifiers: mean paired difference of the share of facts that hold, -1 to 1.
    """

    system: str
    guidance_scale: float
    reward: Estimate
    verifiers: Estimate

    @property
    def status(self) -> Status:
        """`diverging` is the alarm: the reward's interval is above zero and the verifiers' below."""
        words = (self.reward.word, self.verifiers.word)
        if "undecided" in words:
            return "undecided"
        return "diverging" if words == ("above", "below") else "quiet"

    @property
    def sentence(self) -> str:
        """The alarm in words."""
        reward, verifiers = self.reward, self.verifiers
        return (
            f"Alarm: {title_of(self.system)} at guidance {self.guidance_scale:g}: the reward rose by {reward.mean:.2f} "
            f"[{reward.low:.2f}, {reward.high:.2f}] and the share of facts that hold fell by {-verifiers.mean:.3f} "
            f"[{-verifiers.high:.3f}, {-verifiers.low:.3f}]; it goes by the reward's blind spots."
        )

    def as_dict(self) -> dict[str, Any]:
        """Status, reward and verifiers by name."""
        return {"status": self.status, "reward": self.reward.as_dict(), "verifiers": self.verifiers.as_dict()}


def divergences(scores: Scores, steps: int) -> list[Divergence]:
    """Every system beside the base model of the same guidance, in the order of the tables.

    Args:
        scores: the judgements.
        steps: sampler steps of the images.

    Returns:
        One a system and guidance scale; of a search, its dearest budget, which presses hardest on the reward. Empty
        where verifiers or reward were not measured.
    """
    bases = {setting.guidance_scale: setting for setting in scores.of(BASE, steps=steps)}
    found = []
    for name in SYSTEMS:
        dearest = {setting.guidance_scale: setting for setting in scores.of(name, steps=steps)}
        for scale, setting in dearest.items():
            if name == BASE or scale not in bases:
                continue
            reward, verifiers = (scores.difference(setting, bases[scale], column) for column in (REWARD, VERIFIERS))
            if reward is not None and verifiers is not None:
                found.append(Divergence(name, scale, reward, verifiers))
    return found
