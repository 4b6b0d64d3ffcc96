"""What an endpoint understands of OpenAI's request: found out once, by what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from sharpening.rewards.grader.rubric import SCHEMA

Form = Literal["json_schema", "json_object", "text"]

_LESSER: dict[Form, Form] = {"json_schema": "json_object", "json_object": "text"}
_FORM_WORDS = ("response_format", "json_schema", "json_object", "structured output", "guided")


@dataclass(frozen=True)
class Dialect:
    """The optional parameters that are sent.

    Attributes:
        form: how the answer's form is asked for: held to the schema, to any JSON object, or by the rubric's words.
        temperature: whether temperature 0 is sent; some reasoning models know their own only.
        seed: whether the seed is sent.
    """

    form: Form = "json_schema"
    temperature: bool = True
    seed: bool = True

    def parameters(self, seed: int) -> dict[str, Any]:
        """Keyword arguments of a chat completion.

        Args:
            seed: the seed.

        Returns:
            Those that this dialect has.
        """
        found: dict[str, Any] = {}
        if self.form == "json_schema":
            schema = {"name": "marks", "strict": True, "schema": SCHEMA}
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.form == "json_object":
            found["response_format"] = {"type": "json_object"}
        if self.temperature:
            found["temperature"] = 0.0
        if self.seed:
            found["seed"] = seed
        return found

    def without_refused(self, refusal: str) -> Dialect | None:
        """The dialect without the parameter that an endpoint names when it refuses a request.

        Args:
            refusal: the endpoint's words.

        Returns:
            A lesser dialect; `None` if the words name none of its parameters, and the image or prompt is refused.
        """
        words = refusal.lower()
        if self.form in _LESSER and any(word in words for word in _FORM_WORDS):
            return replace(self, form=_LESSER[self.form])
        if self.temperature and "temperature" in words:
            return replace(self, temperature=False)
        if self.seed and "seed" in words:
            return replace(self, seed=False)
        return None
