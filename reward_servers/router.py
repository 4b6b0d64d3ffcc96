"""Several rewards behind one handle: `serve run reward_servers.router:build rewards=clip,embedded-aesthetic`.

For callers on the cluster; it has no HTTP ingress. `reward_servers.gateway` is the same with one in front.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from reward_servers.answers import readable
from reward_servers.app import build_app
from reward_servers.applications import running_replicas
from reward_servers.client import sendable
from reward_servers.failures import one_line, raised_by_scorer
from reward_servers.gateway_options import RouterOptions
from reward_servers.gathering import GATHERED_BYTES, Gathering
from reward_servers.listening import keep_to_loopback
from reward_servers.metrics import failure_counter
from reward_servers.patience import NoAnswer, Patience
from sharpening.rewards.base import FailureReason, Scores, all_failed

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at whether a reward has replicas, while it is waited for."""

Target: TypeAlias = "str | DeploymentHandle"
"""A reward: the name of its application, or a handle to its deployment."""


class NoReplica(NoAnswer):
    """The reward has no replica now; whoever does not want to wait for one stops here."""


@dataclass(frozen=True)
class RewardState:
    """How a reward is.

    Attributes:
        name: what callers call it.
        replicas: replicas that are running.
    """

    name: str
    replicas: int


class RewardRouter:
    """Asks rewards for callers: all of them at once, each with its own retries, so that none keeps another waiting.

    The images of a call are passed on as the reference they came as. A large array is put into the object store once
    for all rewards; small ones of several callers are gathered into requests of a reward's batch.
    """

    def __init__(self, targets: Mapping[str, Target], request_timeout_s: float, deadline_s: float) -> None:
        """Remember whom to ask.

        Args:
            targets: rewards by the name that callers use.
            request_timeout_s: seconds one attempt may take.
            deadline_s: seconds after which a reward that does not answer is given up, unless a call says otherwise.
        """
        keep_to_loopback()  # also the gateway's, which has a router
        self._targets = dict(targets)
        self._request_timeout_s, self._deadline_s = request_timeout_s, deadline_s
        self._handles: dict[str, DeploymentHandle] = {}
        self._gatherings = {name: self._gathering(name) for name in targets}
        self._failures = {name: failure_counter(name) for name in targets}
        self._looks: dict[str, tuple[float, asyncio.Task[int]]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the rewards."""
        return list(self._targets)

    async def score(
        self,
        images: np.ndarray | ray.ObjectRef | Sequence[ray.ObjectRef],
        prompts: Sequence[str],
        rewards: Sequence[str] | None = None,
        deadline_s: float | None = None,
        wait: bool = True,
    ) -> dict[str, Scores]:
        """Score images by several rewards.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB, or a list that holds one reference to them. (Of a bare reference Ray
                makes an array before it gets here.)
            prompts: N prompts.
            rewards: names of rewards; None asks all.
            deadline_s: seconds after which a reward that does not answer is given up.
            wait: whether to wait until then for a reward that has no replica.

        Returns:
            Scores by reward. A reward without an answer has for every image the failure "timeout" (it was slow),
            "unavailable" (it is down), "rejected" (it refused the request) or "unreadable answer".

        Raises:
            ValueError: if there is no such reward.
        """
        names = list(dict.fromkeys(self.names if rewards is None else rewards))
        for name in names:
            if name not in self._targets:
                raise ValueError(f"there is no reward '{name}'; there are {', '.join(self.names)}")
        sent = await _to_send(images)
        deadline = self._deadline_s if deadline_s is None else deadline_s
        answers = [self._score(name, sent, list(prompts), deadline, wait) for name in names]
        return dict(zip(names, await asyncio.gather(*answers), strict=True))

    async def states(self) -> list[RewardState]:
        """How the rewards are, at most a second ago.

        Returns:
            One state a reward, in order.
        """
        counts = await asyncio.gather(*(self._replicas(name) for name in self._targets))
        return [RewardState(name, count) for name, count in zip(self._targets, counts, strict=True)]

    async def _score(self, name: str, images: Any, prompts: list[str], deadline_s: float, wait: bool) -> Scores:
        patience = Patience(self._request_timeout_s, deadline_s)
        reason: FailureReason
        try:
            answer: Any = await patience.retrying_async()(self._ask, name, images, prompts, patience, wait)
        except NoAnswer as error:
            reason = "timeout" if error.timed_out else "unavailable"
            logger.warning("reward '%s' gave no answer for %d images: %s", name, len(prompts), error.reason)
        except (RayError, _Stop) as error:
            reason = "unavailable" if isinstance(error, _Stop) else "rejected"
            logger.warning("reward '%s' %s for %d images: %s", name, reason, len(prompts), one_line(error))
            if not isinstance(error, _Stop):  # the reward's own replica counted it
                return all_failed(len(prompts), reason)
        else:
            scores = readable(answer, len(prompts), name)
            reason = "unreadable answer"
            if "unreadable answer" not in scores.failures.values():
                return scores
        self._failures[name].inc(len(prompts), {"kind": reason})
        return all_failed(len(prompts), reason)

    async def _ask(self, name: str, images: Any, prompts: list[str], patience: Patience, wait: bool) -> Any:
        timeout_s = patience.timeout()
        try:
            gathered = isinstance(images, np.ndarray) and images.nbytes <= GATHERED_BYTES
            send = self._gatherings[name].score if gathered else partial(self._send, name)
            return await self._watched(name, asyncio.ensure_future(send(images, prompts)), timeout_s, wait)
        except (RayError, RayServeException, NoAnswer) as error:
            if isinstance(error, RayError) and raised_by_scorer(error):
                raise
            self._handles.pop(name, None)
            failed = error if isinstance(error, NoAnswer) else NoAnswer(one_line(error))
            if not wait and (isinstance(failed, NoReplica) or not await self._replicas(name)):
                raise _Stop(failed.reason) from error
            raise failed from error

    def _gathering(self, name: str) -> Gathering:
        def refused(error: BaseException) -> bool:
            return isinstance(error, RayError) and raised_by_scorer(error)

        return Gathering(name, partial(self._send, name), refused)

    async def _send(self, name: str, images: Any, prompts: list[str]) -> Any:
        """One request to the reward, and its answer."""
        handle = await self._handle(name)
        sent = await asyncio.to_thread(sendable, images) if isinstance(images, np.ndarray) else images
        response = handle.score.remote(sent, prompts)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def _watched(self, name: str, answer: asyncio.Future[Any], timeout_s: float, wait: bool) -> Any:
        """An answer, or the reason to wait no longer."""
        end = time.monotonic() + timeout_s
        try:
            while (rest := end - time.monotonic()) > 0:
                done, _ = await asyncio.wait({answer}, timeout=min(rest, LOOK_S))
                if answer.cancelled():
                    raise NoAnswer("the request was cancelled")
                if done:
                    return answer.result()
                if not wait and not await self._replicas(name):
                    raise NoReplica("it has no running replica")
            raise NoAnswer(f"no answer within {timeout_s:.3g} s", timed_out=True)
        finally:
            answer.cancel()

    async def _handle(self, name: str) -> DeploymentHandle:
        target = self._targets[name]
        if not isinstance(target, str):
            return target
        if name not in self._handles:
            # It asks the controller and blocks meanwhile.
            self._handles[name] = await asyncio.to_thread(serve.get_app_handle, target)
        return self._handles[name]

    async def _replicas(self, name: str) -> int:
        """Running replicas of a reward, asked for at most once a second."""
        asked, look = self._looks.get(name, (-LOOK_S, None))
        if look is None or time.monotonic() - asked >= LOOK_S:
            look = asyncio.ensure_future(self._look(self._targets[name]))
            self._looks[name] = (time.monotonic(), look)
        return await asyncio.shield(look)

    @staticmethod
    async def _look(target: Target) -> int:
        try:
            if isinstance(target, str):
                return await asyncio.to_thread(running_replicas, target)
            return await asyncio.to_thread(running_replicas, target.app_name, target.deployment_name)
        except (RayError, RayServeException) as error:
            logger.warning("Serve does not tell about its replicas: %s", one_line(error))
            return 0


class _Stop(Exception):
    """The reward is down and the caller does not want to wait for it."""


async def _to_send(images: Any) -> Any:
    """What is passed on as the argument that a replica gets as an array."""
    if isinstance(images, list | tuple):
        if len(images) != 1 or not isinstance(images[0], ray.ObjectRef):
            raise ValueError("images must be an array, or a list that holds one reference to it")
        return images[0]
    large = isinstance(images, np.ndarray) and images.nbytes > GATHERED_BYTES
    return await asyncio.to_thread(ray.put, images) if large else images


def bound_targets(options: RouterOptions) -> dict[str, Any]:
    """The rewards of a router, as arguments of its deployment.

    Args:
        options: whom it asks.

    Returns:
        Bound deployments, of which Serve makes handles, and names of applications.
    """
    words = {name: "".join(part[:1].upper() + part[1:] for part in name.split("-")) for name in options.rewards}
    bound = {name: build_app(reward, f"{words[name]}Reward") for name, reward in options.rewards.items()}
    return {**bound, **options.applications}


def deployment_options(options: RouterOptions) -> dict[str, Any]:
    """What Serve is told about a router or gateway.

    Args:
        options: its options.

    Returns:
        Options of a deployment.
    """
    return {
        "num_replicas": options.num_replicas,
        "max_ongoing_requests": options.max_ongoing_requests,
        "graceful_shutdown_timeout_s": 5.0,
        "graceful_shutdown_wait_loop_s": 0.2,
        "ray_actor_options": {"num_cpus": options.num_cpus},
        "logging_config": LoggingConfig(enable_access_log=False),
    }


def build(args: dict[str, Any]) -> serve.Application:
    """Builder for `serve run` and for `args:` of a Serve configuration file.

    Args:
        args: options of `RouterOptions` by name; values may be text.

    Returns:
        The application.

    Raises:
        ValueError: if no reward is named.
    """
    options = RouterOptions.model_validate(args)
    if not options.reward_names:
        raise ValueError("a router needs rewards=… or applications=…, such as rewards=clip,embedded-aesthetic")
    deployment = serve.deployment(RewardRouter).options(name="RewardRouter", **deployment_options(options))
    return deployment.bind(bound_targets(options), options.request_timeout_s, options.deadline_s)
