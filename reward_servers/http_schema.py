"""What goes over HTTP: requests and answers as pydantic models, of which the OpenAPI schema is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from reward_servers.gateway_options import Limits
from sharpening.rewards.base import FailureReason

RED_SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAT0lEQVR42u3PQQkAAAgEsItz/fMYxgi+hcEKLNO+FgEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQGBywLzk8EPlvGqjQAAAABJRU5ErkJggg=="
)
"""A 64 × 64 PNG, base64: the example in the schema."""


SCORED: dict[str, Any] = {"score": 27.5, "failure": None}
REJECTED: dict[str, Any] = {"score": None, "failure": "rejected"}


class ImageResult(BaseModel):
    """One image: its score, or why it has none."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCORED, REJECTED]})

    score: float | None = Field(description="in the reward's own unit, a float32 written out exactly; null if failed")
    failure: FailureReason | None = Field(description="why there is no score; null if there is one")


class ScoreAnswer(BaseModel):
    """Results by reward, each with one entry an item, in the order of the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": {"clip": [SCORED, REJECTED]}}]})

    results: dict[str, list[ImageResult]]


class RewardEntry(BaseModel):
    """A reward that can be asked for."""

    name: str
    available: bool = Field(description="whether it has a replica that runs")
    replicas: int = Field(ge=0, description="replicas that run")


class ServerLimits(Limits):
    """A server's limits, also those that this version does not know."""

    model_config = ConfigDict(extra="ignore")


class RewardsAnswer(BaseModel):
    """What this server can score, and what a request may hold."""

    rewards: list[RewardEntry]
    limits: ServerLimits


class Health(BaseModel):
    """Whether requests are served."""

    status: Literal["ok", "degraded"] = Field(description="degraded: at least one reward is down")


class Problem(BaseModel):
    """Why a request was not served, in one sentence."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "image 0 is neither a PNG nor a JPEG file"}]})

    detail: str


def request_model(limits: Limits, rewards: Sequence[str]) -> type[BaseModel]:
    """The JSON body of a request for scores.

    Args:
        limits: what it may hold.
        rewards: names it may ask for.

    Returns:
        A model with `items`, each with `image` (base64) and `prompt`, and `rewards` (names, or null for all).
    """
    encoded = 4 * ((limits.max_image_bytes + 2) // 3)
    strict = ConfigDict(extra="forbid", strict=True)
    image = Field(
        min_length=4, max_length=encoded, description="a PNG or JPEG file, base64",
        json_schema_extra={"contentEncoding": "base64", "format": "byte", "examples": [RED_SQUARE]},
    )  # fmt: skip
    prompt = Field(
        max_length=limits.max_prompt_characters, description="the prompt",
        json_schema_extra={"examples": ["a red square"]},
    )  # fmt: skip
    fields: dict[str, Any] = {"image": (Annotated[str, image], ...), "prompt": (Annotated[str, prompt], ...)}
    item = create_model("Item", __config__=strict, __doc__="One image and the prompt it is judged by.", **fields)
    name: Any = Literal[tuple(rewards)]
    names: Any = Annotated[list[name], Field(min_length=1, max_length=len(rewards))]
    items: Any = Annotated[list[item], Field(min_length=1, max_length=limits.max_items)]  # type: ignore[valid-type]
    about = "who judges; null asks every reward"
    fields = {"items": (items, ...), "rewards": (names | None, Field(None, description=about))}
    example: Any = {"items": [{"image": RED_SQUARE, "prompt": "a red square"}], "rewards": [rewards[0]]}
    config = ConfigDict(**strict, json_schema_extra={"examples": [example]})
    return create_model("ScoreRequest", __config__=config, __doc__="Images to be scored.", **fields)


def form_schema(limits: Limits, rewards: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of the multipart form that asks for scores.

    Args:
        limits: what it may hold.
        rewards: names it may ask for.

    Returns:
        A schema with the repeated fields `image` (files), `prompt` and `rewards`.
    """
    many = {"type": "array", "minItems": 1, "maxItems": limits.max_items}
    return {
        "type": "object",
        "description": "As many files named image as fields named prompt, in the same order.",
        "required": ["image", "prompt"],
        "additionalProperties": False,
        "properties": {
            "image": {**many, "items": {"type": "string", "format": "binary", "contentMediaType": "image/png"}},
            "prompt": {**many, "items": {"type": "string", "maxLength": limits.max_prompt_characters}},
            "rewards": {
                "type": "array", "minItems": 1, "maxItems": len(rewards),
                "items": {"type": "string", "enum": list(rewards)},
            },
        },
    }  # fmt: skip


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong with a body, without repeating what was sent.

    Args:
        error: what pydantic found.

    Returns:
        Where it is and what was expected, such as `items[3].prompt: Input should be a valid string`.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"] if part != "")
    place = place.lstrip(".")[:100]
    words = " ".join(first["msg"].split())[:200]
    return f"{place}: {words}" if place else words


def one_of(rewards: Sequence[str]) -> str:
    """Names for a message.

    Args:
        rewards: names of rewards.

    Returns:
        `"a", "b"`.
    """
    return ", ".join(json.dumps(name) for name in rewards)
