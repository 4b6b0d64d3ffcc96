"""Scoring through Ray Serve: `ScoreFn`s that outlive the death of replicas."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from tenacity import RetryCallState

from reward_servers.answers import readable
from reward_servers.failures import one_line, raised_by_scorer
from reward_servers.patience import NoAnswer, Patience
from sharpening.rewards.base import RewardMisconfigured, RewardUnavailable, Scores, all_failed

logger = logging.getLogger(__name__)


SMALL_BYTES = 64 * 1024
"""Images of at most so many bytes travel with the request: a reference to them would cost a fifth more of the replica's
time for a request, and twice the caller's."""


class _Caller:
    """Asks one application through its deployment handle, again and again until the deadline."""

    def __init__(
        self, target: str | DeploymentHandle, request_timeout_s: float = 60.0, deadline_s: float = 300.0
    ) -> None:
        """Remember whom to ask; nothing is sent yet.

        Args:
            target: name of the application, looked up again after every failure, or a handle to its deployment.
            request_timeout_s: seconds one attempt may take, waiting for a replica included.
            deadline_s: seconds after which the call gives up.
        """
        self._target = target
        self._request_timeout_s = request_timeout_s
        self._deadline_s = deadline_s
        self._handle: DeploymentHandle | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._target, self._request_timeout_s, self._deadline_s)

    @property
    def name(self) -> str:
        """Name of the application."""
        return self._target if isinstance(self._target, str) else self._target.app_name

    def _answer(self, send: Callable[[DeploymentHandle], DeploymentResponse]) -> Any:
        """What the application answers.

        Args:
            send: makes the request; called once an attempt.

        Returns:
            The answer.

        Raises:
            RewardUnavailable: if there was none until the deadline.
            RewardMisconfigured: at once, if the scorer says that asking again is of no use.
            RayError: if the scorer refused the request.
        """
        patience = Patience(self._request_timeout_s, self._deadline_s)
        failed: list[str] = []

        def note(state: RetryCallState) -> None:
            assert state.outcome is not None
            failed.append(str(state.outcome.exception()))
            if len(failed) == 1:
                logger.warning("reward '%s' gave no answer (%s); asking again", self.name, failed[0])

        try:
            answer = patience.retrying(note)(self._ask, send, patience)
        except NoAnswer as error:
            # The attempt at the deadline had no time, so what failed before it says more.
            reason = failed[-1] if failed and error.timed_out else error.reason
            raise RewardUnavailable(
                f"the reward '{self.name}' gave no answer for {self._deadline_s:g} s ({reason}); "
                "its replicas' logs are on the dashboard's Serve page"
            ) from error
        if failed:
            logger.warning("reward '%s' answers again after %.1f s", self.name, patience.elapsed())
        return answer

    def _ask(self, send: Callable[[DeploymentHandle], DeploymentResponse], patience: Patience) -> Any:
        timeout_s = patience.timeout()
        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(self._target) if isinstance(self._target, str) else self._target
            response = send(self._handle)
            try:
                return response.result(timeout_s=timeout_s)
            except TimeoutError:
                response.cancel()
                raise NoAnswer(f"no answer within {timeout_s:.3g} s", timed_out=True) from None
        except (CancelledError, RayError, RayServeException) as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, RewardMisconfigured):
                raise RewardMisconfigured(str(error.cause)) from None
            if raised_by_scorer(error):
                raise
            self._handle = None
            raise NoAnswer(one_line(error)) from error
        except NoAnswer:
            self._handle = None
            raise


class ServeScore(_Caller):
    """A `ScoreFn` that asks a reward application through its deployment handle, and blocks for the answer.

    One call is one request, however many images it has: the images are put into the object store once, unless they
    are few and small, and a retry sends the same reference, so it gets the same scores. Scores are those of the
    scorer in the process, bit for bit, where machine, versions and `num_threads` are equal. Not for use inside an
    event loop.

    A request that meets a dead replica, finds none, or takes longer than `request_timeout_s` is sent again, with
    pauses that grow from 0.1 to 2 seconds, until `deadline_s` after the call began. What the scorer itself raises
    (images of a wrong shape, say) would be raised again, so it is not retried: every image of that call comes back
    with the failure "rejected", and the reason is logged.
    """

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            Scores of the N images; `failures` says "rejected" for all of them if the scorer refused the request, and
            "unreadable answer" if what came back are no scores.

        Raises:
            RewardUnavailable: if there was no answer until the deadline.
            RewardMisconfigured: at once, if the scorer says that asking again is of no use.
        """  # noqa: DOC502
        sent = sendable(images)
        try:
            answer = self._answer(lambda handle: handle.score.remote(sent, list(prompts)))
        except RayError as error:
            logger.warning("reward '%s' rejected %d images: %s", self.name, len(images), one_line(error))
            return all_failed(len(images), "rejected")
        return readable(answer, len(images), self.name)


class ServeRewards(_Caller):
    """Asks several rewards at once through the router that stands in front of them (`reward_servers.router`).

    Images are put into the object store once; the router passes the reference on. Retries and deadline are those of
    `ServeScore`, of the router's answer as a whole; within it the router waits for each reward for its own deadline.
    """

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], rewards: Sequence[str] | None = None
    ) -> dict[str, Scores]:
        """Score images by several rewards.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.
            rewards: names of rewards; None asks all.

        Returns:
            Scores of the N images by reward. One that did not answer in time has failures for all of them.

        Raises:
            RewardUnavailable: if the router gave no answer until the deadline.
            ValueError: if there is no such reward, or the arguments have other shapes or types.
        """  # noqa: DOC502
        sent = sendable(images)
        # In a list: Ray would put the images themselves in the place of a bare reference, for the router to hold.
        passed_on = [sent] if isinstance(sent, ray.ObjectRef) else sent
        try:
            return self._answer(lambda handle: handle.score.remote(passed_on, list(prompts), rewards))
        except RayError as error:
            raise ValueError(one_line(error)) from error


def sendable(images: np.ndarray) -> np.ndarray | ray.ObjectRef:
    """What stands for images in a request.

    Args:
        images: uint8 `[N, H, W, 3]`, RGB.

    Returns:
        A reference to them in the object store, or few and small ones themselves.
    """
    return ray.put(images) if images.nbytes > SMALL_BYTES else images
