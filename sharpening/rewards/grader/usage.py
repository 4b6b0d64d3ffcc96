"""What the grader was asked, and what it cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

PER = 1e6  # tokens that a price is given for


@dataclass
class GraderUsage:
    """Counts since the scorer was made.

    Attributes:
        images: images that were to be scored.
        cached: of these, those whose score was known: seen lately, or twice in one call.
        requests: HTTP requests sent.
        retries: of these, those sent again after a refusal for now (429), a server's error, a lost connection or a
            time-out.
        asked_again: answers that could not be read and were asked for again.
        prompt_tokens: tokens of questions, images included, as far as the endpoint told.
        completion_tokens: tokens of answers, likewise.
        failures: images without a score, by reason.
        prompt_price: price of a million prompt tokens, in any currency; `None` if unknown.
        completion_price: that of a million completion tokens.
    """

    images: int = 0
    cached: int = 0
    requests: int = 0
    retries: int = 0
    asked_again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    prompt_price: float | None = None
    completion_price: float | None = None

    @property
    def cost(self) -> float | None:
        """Price of all tokens, in the currency of the prices; `None` where no price is known.

        Requests whose answer never came may be charged for by the endpoint, but are not counted here.
        """
        if self.prompt_price is None and self.completion_price is None:
            return None
        prompts = self.prompt_tokens * (self.prompt_price or 0.0)
        return (prompts + self.completion_tokens * (self.completion_price or 0.0)) / PER

    def statistics(self) -> dict[str, int | float]:
        """The counts as flat numbers whose names start with `grader_`; no cost where it is not known."""
        names = ("images", "cached", "requests", "retries", "asked_again", "prompt_tokens", "completion_tokens")
        found: dict[str, int | float] = {f"grader_{name}": getattr(self, name) for name in names}
        found["grader_failures"] = self.failures.total()
        return found if self.cost is None else found | {"grader_cost": self.cost}

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.images} images ({self.cached} cached, {self.failures.total()} failed), {self.requests} "
            f"requests ({self.retries} retries, {self.asked_again} asked again), {self.prompt_tokens} prompt and "
            f"{self.completion_tokens} completion tokens{cost}"
        )
