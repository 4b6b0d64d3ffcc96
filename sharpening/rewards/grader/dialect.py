"""What an endpoint understands of OpenAI's request: found out once, by what it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from sharpening.rewards.grader.rubric import SCHEMA

Form = Literal["json_schema", "json_object", "text"]

_LESSER: dict[Form, Form] = {"json_schema": "json_object", "json_object": "text"}
# Whole words, for a refusal of the prompt may repeat it: "sunflower seeds" are no parameter.
_FORM = re.compile(r"\b(response_format|json_schema|json_object)\b", re.IGNORECASE)
_TEMPERATURE = re.compile(r"\btemperature\b", re.IGNORECASE)
_SEED = re.compile(r"\bseed\b", re.IGNORECASE)


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
        if self.form in _LESSER and _FORM.search(refusal):
            return replace(self, form=_LESSER[self.form])
        if self.temperature and _TEMPERATURE.search(refusal):
            return replace(self, temperature=False)
        if self.seed and _SEED.search(refusal):
            return replace(self, seed=False)
        return None
