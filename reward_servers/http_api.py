"""The HTTP interface of rewards: `POST /v1/score`, `GET /v1/rewards`, `GET /healthz`. Knows nothing of Serve."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Security
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from reward_servers.gateway_options import TOKEN_VARIABLE, GatewayOptions
from reward_servers.http_body import FORM, JSON, Asked, BodyReader
from reward_servers.http_schema import (
    Health,
    ImageResult,
    Problem,
    RewardEntry,
    RewardsAnswer,
    ScoreAnswer,
    ServerLimits,
    form_schema,
    request_model,
)
from reward_servers.images import Refused
from sharpening.rewards.base import Scores

ABOUT = """Scores of images against their prompts.

Every image of an answer has a score, in the reward's own unit, or the reason why there is none. Errors are one
sentence under `detail`. Where the server has a token, send it as `Authorization: Bearer …`."""

BEARER = HTTPBearer(auto_error=False, description=f"what the server's environment has in {TOKEN_VARIABLE}")

ERRORS: dict[int, str] = {
    400: "The body is not JSON, not UTF-8, or no form.",
    401: "The token is missing or wrong.",
    413: "The body, an image, or all images together are too large.",
    415: "The body is neither JSON nor a multipart form.",
    422: "The body does not have the right fields, or an image cannot be read.",
    503: "The rewards are down, or the server is full; Retry-After says when to come back.",
    504: "No reward answered in time; Retry-After says when to come back.",
}


class State(Protocol):
    """How a reward is; `router.RewardState`."""

    @property
    def name(self) -> str:
        """What callers call it."""

    @property
    def replicas(self) -> int:
        """Replicas that run."""


class Rewards(Protocol):
    """Whom the interface asks; `router.RewardRouter`."""

    @property
    def names(self) -> list[str]:
        """Names of the rewards."""

    async def score(
        self, images: np.ndarray, prompts: Sequence[str], rewards: Sequence[str], deadline_s: float, wait: bool
    ) -> dict[str, Scores]:
        """Scores of uint8 `[N, H, W, 3]` by reward; see `RewardRouter.score`."""

    async def states(self) -> Sequence[State]:
        """How the rewards are."""


class ScoreApi:
    """The handlers and what they share."""

    def __init__(self, rewards: Rewards, options: GatewayOptions) -> None:
        """Prepare for requests.

        Args:
            rewards: whom to ask.
            options: limits and timeouts.
        """
        self._rewards, self._options = rewards, options
        self.model = request_model(options.limits, rewards.names)
        self._reader = BodyReader(self.model, options.limits, rewards.names)
        self._threads = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        self._in_flight = 0

    async def score(self, request: Request) -> ScoreAnswer:
        """Answer `POST /v1/score`.

        Args:
            request: its body is read here, within the limits.

        Returns:
            Results by reward.

        Raises:
            Refused: if the request is wrong, the server full, or no reward answers.
        """  # noqa: DOC502
        held = 0
        try:
            chunks = []
            async for chunk in self._body(request):
                held += len(chunk)
                self._in_flight += len(chunk)
                chunks.append(chunk)
            kind = request.headers.get("content-type", "")
            loop = asyncio.get_running_loop()
            asked = await loop.run_in_executor(self._threads, self._reader.read, kind, b"".join(chunks))
            del chunks
            return _answer(await self._ask(asked))
        finally:
            self._in_flight -= held

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, as far as the limits go."""
        most = self._options.limits.max_body_bytes
        declared = request.headers.get("content-length", "")
        received = 0
        too_large = Refused(413, f"the body is too large; {most:,} bytes are allowed")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large
        async for chunk in request.stream():
            received += len(chunk)
            if received > most:
                raise too_large
            if self._in_flight + len(chunk) > self._options.max_bytes_in_flight:
                raise Refused(503, "the server holds as many bytes as it may; come back later")
            yield chunk

    async def _ask(self, asked: Asked) -> dict[str, Scores]:
        """Scores of all images. Those of one size are asked for together."""
        timeout = self._options.http_timeout_s
        asking = [
            self._rewards.score(images, prompts, asked.rewards, deadline_s=timeout, wait=False)
            for _, images, prompts in asked.groups
        ]
        answers = await asyncio.gather(*asking)
        places = [numbers for numbers, _, _ in asked.groups]
        scores = {name: _in_order(places, [answer[name] for answer in answers], asked.count) for name in asked.rewards}
        _refuse_if_down(scores)
        return scores

    async def entries(self) -> list[RewardEntry]:
        """The rewards and whether they are there."""
        states = await self._rewards.states()
        return [RewardEntry(name=s.name, available=s.replicas > 0, replicas=s.replicas) for s in states]


def _in_order(places: list[list[int]], parts: Sequence[Scores], count: int) -> Scores:
    values = np.full(count, np.nan, np.float32)
    failures = {}
    for numbers, part in zip(places, parts, strict=True):
        values[numbers] = part.values
        failures.update({numbers[i]: reason for i, reason in part.failures.items()})
    return Scores(values, failures)


def _refuse_if_down(scores: dict[str, Scores]) -> None:
    """Answer with an error if there is no result at all and asking again may bring one."""
    if not all(len(part.failures) == len(part.values) for part in scores.values()):
        return
    reasons = {reason for part in scores.values() for reason in part.failures.values()}
    if reasons <= {"unavailable", "timeout"}:
        names = ", ".join(scores)
        if "unavailable" in reasons:
            raise Refused(503, f"no replica of {names} is there; come back later")
        raise Refused(504, f"{names} did not answer in time; come back later, or send fewer images")


def _answer(scores: dict[str, Scores]) -> ScoreAnswer:
    # float() of a float32 is exact, and JSON holds the shortest text that reads back as the same number.
    results = {
        name: [
            ImageResult(score=None if i in part.failures else float(value), failure=part.failures.get(i))  # type: ignore[arg-type]
            for i, value in enumerate(part.values)
        ]
        for name, part in scores.items()
    }
    return ScoreAnswer(results=results)


def authentication(token: str | None) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only those in who know the token.

    Args:
        token: the bearer token; None lets everybody in.

    Returns:
        The dependency.
    """

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]) -> None:
        wanted = token or ""
        # Compared in constant time, as bytes: a header may hold anything.
        if given is None or not hmac.compare_digest(given.credentials.encode(), wanted.encode()):
            raise HTTPException(
                401, "the token is missing or wrong; send Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
            )

    async def anybody() -> None:
        return None

    return check if token else anybody


def build_api(rewards: Rewards, options: GatewayOptions, token: str | None = None) -> FastAPI:
    """The application. Everything but `/healthz` needs the token, the schema included.

    Args:
        rewards: whom it asks.
        options: limits and timeouts.
        token: bearer token; None for no authentication.

    Returns:
        An ASGI application.
    """
    api = ScoreApi(rewards, options)
    app = FastAPI(title="Rewards", version="1", description=ABOUT, openapi_url=None, docs_url=None, redoc_url=None)
    check = Depends(authentication(token))
    errors = _responses(400, 401, 413, 415, 422, 503, 504) if token else _responses(400, 413, 415, 422, 503, 504)
    protected = APIRouter(dependencies=[check])

    @protected.post(
        "/v1/score", summary="Score images", responses=errors,
        openapi_extra={"requestBody": _request_body(options, rewards.names)},
    )  # fmt: skip
    async def score(request: Request) -> ScoreAnswer:
        """Score images against their prompts, by some rewards or all. Both kinds of body mean the same."""
        return await api.score(request)

    @protected.get("/v1/rewards", summary="List rewards and limits", responses=_responses(401) if token else {})
    async def list_rewards() -> RewardsAnswer:
        """The rewards that can be asked for, whether they are there, and what a request may hold."""
        return RewardsAnswer(rewards=await api.entries(), limits=ServerLimits(**options.limits.model_dump()))

    @app.get("/healthz", summary="Health", responses=_responses(503))
    async def healthz() -> Health:
        """Whether requests are served. Needs no token."""
        there = [entry.available for entry in await api.entries()]
        if not any(there):
            raise Refused(503, "no reward is there")
        return Health(status="ok" if all(there) else "degraded")

    @protected.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": str(options.retry_after_s)} if error.status in (503, 504) else {}
        return JSONResponse({"detail": str(error)}, error.status, headers)

    app.include_router(protected)
    _add_schema(app, api)
    return app


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": ERRORS[status]} for status in statuses}


def _request_body(options: GatewayOptions, rewards: Sequence[str]) -> dict[str, Any]:
    return {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": "#/components/schemas/ScoreRequest"}},
            FORM: {"schema": form_schema(options.limits, rewards)},
        },
    }


def _add_schema(app: FastAPI, api: ScoreApi) -> None:
    """Put the body's model into the schema; handlers read the body themselves, so FastAPI does not see it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            body = api.model.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = {**body.pop("$defs", {}), "ScoreRequest": body}
            schema.setdefault("components", {}).setdefault("schemas", {}).update(parts)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
