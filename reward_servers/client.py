"""Scoring through Ray Serve: starts the application, and a `ScoreFn` that outlives the death of replicas."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from reward_servers.options import RewardAppOptions
from sharpening.checks import check_clip_folder
from sharpening.rewards.base import RewardMisconfigured, RewardUnavailable, Scores

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


class ServeScore:
    """A `ScoreFn` that asks a reward application through its deployment handle, and blocks for the answer.

    One call is one request, however many images it has: the images are put into the object store once and a retry
    sends the same reference, so it gets the same scores. Scores are those of the scorer in the process, bit for bit,
    where machine, versions and `num_threads` are equal. Not for use inside an event loop.

    A request that meets a dead replica, finds none, or takes longer than `request_timeout_s` is sent again, with
    pauses that grow from 0.1 to 2 seconds, until `deadline_s` after the call began. What the scorer itself raises
    (images of a wrong shape, say) would be raised again, so it is not retried: every image of that call comes back
    with the failure "rejected", and the reason is logged.
    """

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
        return ServeScore, (self._target, self._request_timeout_s, self._deadline_s)

    @property
    def name(self) -> str:
        """Name of the application."""
        return self._target if isinstance(self._target, str) else self._target.app_name

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images against their prompts.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB.
            prompts: N prompts.

        Returns:
            Scores of the N images; `failures` says "rejected" for all of them if the scorer refused the request.

        Raises:
            RewardUnavailable: if there was no answer until the deadline.
            RewardMisconfigured: at once, if the scorer says that asking again is of no use.
        """
        started = time.monotonic()
        reference = ray.put(images)
        pauses = _pauses()
        reason = ""
        while True:
            remaining = self._deadline_s - (time.monotonic() - started)
            if remaining <= 0:
                break
            try:
                scores = self._ask(reference, list(prompts), min(self._request_timeout_s, remaining))
            except (TimeoutError, CancelledError, RayError, RayServeException) as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, RewardMisconfigured):
                    raise RewardMisconfigured(str(error.cause)) from None
                if _raised_by_scorer(error):
                    logger.warning("reward '%s' rejected %d images: %s", self.name, len(images), _one_line(error))
                    return Scores(
                        np.full(len(images), np.nan, np.float32), dict.fromkeys(range(len(images)), "rejected")
                    )
                if not reason:
                    logger.warning("reward '%s' gave no answer (%s); asking again", self.name, _one_line(error))
                reason = _one_line(error)
                self._handle = None
            else:
                if reason:
                    logger.warning("reward '%s' answers again after %.1f s", self.name, time.monotonic() - started)
                return scores
            time.sleep(max(0.0, min(next(pauses), self._deadline_s - (time.monotonic() - started))))
        raise RewardUnavailable(
            f"the reward '{self.name}' gave no answer for {self._deadline_s:g} s ({reason}); "
            "its replicas' logs are on the dashboard's Serve page"
        )

    def _ask(self, images: ray.ObjectRef, prompts: list[str], timeout_s: float) -> Scores:
        if self._handle is None:
            self._handle = serve.get_app_handle(self._target) if isinstance(self._target, str) else self._target
        response = self._handle.score.remote(images, prompts)
        try:
            return response.result(timeout_s=timeout_s)
        except TimeoutError:
            response.cancel()
            raise TimeoutError(f"no answer within {timeout_s:.3g} s") from None


def _pauses() -> Iterator[float]:
    """Seconds between attempts: doubling, with jitter so that actors do not come back all at once."""
    jitter = random.Random()  # its own state: the global one belongs to whoever seeded it
    pause = FIRST_PAUSE_S
    while True:
        yield pause * jitter.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _raised_by_scorer(error: Exception) -> bool:
    """Whether a replica raised it while scoring, as against Ray, Serve or a service behind the scorer failing."""
    passing = (RayError, RayServeException, RewardUnavailable)
    return isinstance(error, RayTaskError) and not isinstance(error.cause, passing)


def _one_line(error: BaseException) -> str:
    """What an error says, without traces."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    words = str(cause).strip().splitlines()
    return words[0][:200] if words else type(cause).__name__


def start_reward_app(
    options: RewardAppOptions | None = None, http: bool = False, timeout_s: float = 180.0
) -> DeploymentHandle:
    """Deploy a reward application on the connected cluster and wait until it answers.

    An application of the same name is replaced: jobs that share a cluster give theirs different names. A Serve
    instance that already runs keeps its own HTTP settings.

    Args:
        options: what is served, and with what resources; defaults: the embedded CLIP on one CPU.
        http: whether a Serve instance started here listens for HTTP, on 127.0.0.1:8000; by default it has no proxy.
        timeout_s: seconds to wait for all replicas.

    Returns:
        A handle; `handle.score.remote(images, prompts)`.

    Raises:
        ModelFolderError: if the model is a folder here that is damaged; nothing is deployed.
        RewardUnavailable: if the replicas do not come up; the application is removed again.
    """  # noqa: DOC502
    from reward_servers.app import build_app

    options = options or RewardAppOptions()
    if options.model and os.path.exists(options.model):
        if options.reward == "clip":
            check_clip_folder(options.model)
        # Replicas may run in another folder.
        options = options.model_copy(update={"model": os.path.abspath(options.model)})
    serve.start(proxy_location="HeadOnly" if http else "Disabled", logging_config={"enable_access_log": False})
    target = serve.RunTarget(target=build_app(options), name=options.name, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    started = time.monotonic()
    while (state := _application_state(options.name))[0] != "RUNNING":
        waited = time.monotonic() - started
        if state[0] == "DEPLOY_FAILED" or waited > timeout_s:
            stop_reward_app(options.name)
            raise RewardUnavailable(f"the reward '{options.name}' did not start within {waited:.0f} s: {state[1]}")
        time.sleep(0.1)
    return handle


def stop_reward_app(name: str = "reward") -> None:
    """Remove a reward application; Serve itself stays for other applications, and ends with its cluster.

    Args:
        name: name of the application; one that does not exist is not missed.
    """
    try:
        serve.delete(name)
    except RayServeException:
        return


def running_replicas(name: str) -> int:
    """Replicas of an application that Serve knows to be running.

    Args:
        name: name of the application.

    Returns:
        Their number, over all its deployments; 0 where there is no such application.
    """
    application = serve.status().applications.get(name)
    deployments = application.deployments.values() if application else ()
    return sum(count for d in deployments for state, count in d.replica_states.items() if state == "RUNNING")


def _application_state(name: str) -> tuple[str, str]:
    """Status of an application, and in one line what Serve says about it."""
    application = serve.status().applications.get(name)
    if application is None:
        return "NOT_STARTED", "Serve does not know it yet"
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    message = errors[-1].rpartition("Error: ")[2] if errors else (lines or ["its replicas are still starting"])[-1]
    return application.status.value, message
