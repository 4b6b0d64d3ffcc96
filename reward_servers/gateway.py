"""Rewards over HTTP: `serve run reward_servers.gateway:build rewards=clip,embedded-aesthetic`.

`build` takes the options of `GatewayOptions`; `app` is bound with the defaults, for `serve build`. Callers on the
cluster use the same application through its handle, as they use `reward_servers.router`. What is listened on is
Serve's setting, 127.0.0.1:8000 by default.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve

from reward_servers.gateway_options import TOKEN_VARIABLE, GatewayOptions
from reward_servers.http_api import build_api
from reward_servers.router import RewardRouter, Target, bound_targets, deployment_options
from sharpening.rewards.base import Scores


@serve.ingress()
class Gateway:
    """The router with an HTTP interface in front. Serve gives it the handles of the rewards that it serves itself."""

    def __init__(self, targets: dict[str, Target], options: GatewayOptions) -> None:
        """Read the token from this process's environment.

        Args:
            targets: rewards by the name that callers use.
            options: limits and timeouts.

        Raises:
            RuntimeError: if a token is required and there is none.
        """
        self._token = os.environ.get(TOKEN_VARIABLE) or None
        if options.require_token and self._token is None:
            raise RuntimeError(
                f"{TOKEN_VARIABLE} is not set on this node; set it where `ray start` runs, or pass require_token=false"
            )
        self._options = options
        self._router = RewardRouter(targets, options.request_timeout_s, options.deadline_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._router, self._options, self._token)

    async def score(
        self, images: Any, prompts: Sequence[str], rewards: Sequence[str] | None = None, deadline_s: float | None = None
    ) -> dict[str, Scores]:
        """Score images for callers on the cluster; see `RewardRouter.score`.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB, or a list that holds one reference to them.
            prompts: N prompts.
            rewards: names of rewards; None asks all.
            deadline_s: seconds after which a reward that does not answer is given up.

        Returns:
            Scores by reward.

        Raises:
            ValueError: if there is no such reward.
        """  # noqa: DOC502
        return await self._router.score(images, prompts, rewards, deadline_s)


def build_gateway(options: GatewayOptions) -> serve.Application:
    """Bind the gateway, and the rewards that it serves itself.

    Args:
        options: rewards, limits and timeouts.

    Returns:
        An application for `serve.run`.
    """
    options = options.settled()
    deployment = serve.deployment(Gateway).options(name="Gateway", **deployment_options(options))
    # The rewards' own options are in their deployments.
    return deployment.bind(bound_targets(options), options.model_copy(update={"rewards": {}}))


def build(args: dict[str, Any]) -> serve.Application:
    """Builder for `serve run` and for `args:` of a Serve configuration file.

    Args:
        args: options of `GatewayOptions` by name; values may be text.

    Returns:
        The application.
    """
    return build_gateway(GatewayOptions.model_validate(args))


app = build({})
