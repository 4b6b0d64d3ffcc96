"""Options of the router and of the HTTP gateway, and the limits of a request; imports neither torch nor Ray."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reward_servers.options import RewardAppOptions

TOKEN_VARIABLE = "REWARD_SERVER_TOKEN"
"""Environment variable that holds the bearer token, at the server and at clients."""


class Limits(BaseModel):
    """What one HTTP request may hold; more is refused before it is decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_items: int = Field(default=256, ge=1, description="images of a request")
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="bytes of a request's body")
    max_image_bytes: int = Field(default=16 * 2**20, ge=1, description="bytes of one PNG or JPEG")
    max_image_pixels: int = Field(default=2048 * 2048, ge=1, description="width × height of one image")
    max_pixels: int = Field(default=64 * 1024 * 1024, ge=1, description="width × height, summed over a request")
    max_prompt_characters: int = Field(default=4096, ge=1, description="characters of a prompt")


class RouterOptions(BaseModel):
    """Which rewards stand behind one handle. Command lines may pass every value as text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="rewards", description="application name, as the dashboard's Serve page shows it")
    rewards: dict[str, RewardAppOptions] = Field(
        default_factory=dict,
        description="rewards served by this application itself, by the name that callers use; "
        "as text, names separated by commas: clip,embedded-aesthetic or mine=package.module:Class",
    )
    applications: dict[str, str] = Field(
        default_factory=dict,
        description="reward applications that run on their own, by the name that callers use; "
        "as text: clip=reward-clip,aesthetic=reward-aesthetic",
    )
    request_timeout_s: float = Field(default=60.0, gt=0, description="seconds one attempt at a reward may take")
    deadline_s: float = Field(
        default=300.0, gt=0, description="seconds after which a caller on the cluster learns that a reward is down"
    )
    num_replicas: int = Field(default=1, ge=1, description="replicas of the router or gateway")
    num_cpus: float = Field(
        default=0.0, ge=0, description="CPUs that Ray reserves for one of them; none, so that rewards may have them all"
    )
    max_ongoing_requests: int = Field(default=512, ge=1, description="requests that one of them holds")

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = _pairs(value)
        if not isinstance(value, dict):
            return value
        named = {}
        for name, given in value.items():
            given = {"reward": given or name} if given is None or isinstance(given, str) else given
            named[name] = {"reward": name, "name": name, **given} if isinstance(given, dict) else given
        return named

    @field_validator("applications", mode="before")
    @classmethod
    def _applications_from_text(cls, value: Any) -> Any:
        return {name: app or name for name, app in _pairs(value).items()} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_rewards(self) -> RouterOptions:
        for name in self.reward_names:
            if not re.fullmatch(r"[\w.-]{1,64}", name):
                raise ValueError(f"the reward's name '{name[:80]}' must be made of letters, digits, '_', '.' and '-'")
        both = self.rewards.keys() & self.applications.keys()
        if both:
            raise ValueError(f"'{min(both)}' stands under rewards and under applications; name each reward once")
        return self

    @property
    def reward_names(self) -> list[str]:
        """Names of all rewards, in the order they were given."""
        return [*self.rewards, *self.applications]


class GatewayOptions(RouterOptions):
    """The router with an HTTP interface in front."""

    limits: Limits = Field(default_factory=Limits, description="what one HTTP request may hold")
    http_timeout_s: float = Field(
        default=60.0, gt=0, description="seconds after which an HTTP request is told that a reward did not answer"
    )
    retry_after_s: int = Field(default=5, ge=1, description="what Retry-After says when a reward is down")
    max_bytes_in_flight: int = Field(
        default=512 * 2**20, ge=1, description="bytes of bodies held at a time; further requests are told to come back"
    )
    decode_threads: int = Field(default=1, ge=1, description="threads that decode images")
    require_token: bool | None = Field(
        default=None,
        description=f"refuse to start where {TOKEN_VARIABLE} is not set; none: if it is set where the application "
        "is built, so that a cluster's nodes cannot lack it unnoticed",
    )

    def settled(self) -> GatewayOptions:
        """A copy with at least one reward and with `require_token` decided by this process's environment."""
        changes: dict[str, Any] = {}
        if not self.reward_names:
            changes["rewards"] = {"clip": RewardAppOptions(name="clip")}
        if self.require_token is None:
            changes["require_token"] = bool(os.environ.get(TOKEN_VARIABLE))
        return self.model_copy(update=changes)


def _pairs(text: str) -> dict[str, str | None]:
    """`a=b,c` as `{"a": "b", "c": None}`."""
    found: dict[str, str | None] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        if name in found:
            raise ValueError(f"'{name}' is named twice; name each reward once")
        found[name] = value or None
    return found
