"""Deploying rewards on the connected cluster, asking Serve how they are, and taking them away."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from reward_servers.gateway_options import GatewayOptions
from reward_servers.options import RewardAppOptions
from sharpening.rewards.base import RewardUnavailable
from sharpening.rewards.files import check_reward_files

LOOPBACK, HTTP_PORT = "127.0.0.1", 8000


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
        ModelFolderError: if its files are here and damaged; nothing is deployed.
        RewardUnavailable: if the replicas do not come up; the application is removed again.
    """  # noqa: DOC502
    (handle,) = start_reward_apps([options or RewardAppOptions()], http, timeout_s)
    return handle


def start_reward_apps(
    wanted: Sequence[RewardAppOptions], http: bool = False, timeout_s: float = 180.0
) -> list[DeploymentHandle]:
    """Deploy reward applications side by side, each as `start_reward_app` does one, and wait until all answer.

    Args:
        wanted: what is served, and with what resources.
        http: whether a Serve instance started here listens for HTTP.
        timeout_s: seconds to wait for all replicas.

    Returns:
        A handle each.

    Raises:
        ModelFolderError: if files of a model are here and damaged; nothing is deployed.
        RewardUnavailable: if replicas do not come up; all the applications are removed again.
    """  # noqa: DOC502
    from reward_servers.app import build_app

    wanted = [_located(options) for options in wanted]
    serve.start(proxy_location="HeadOnly" if http else "Disabled", logging_config={"enable_access_log": False})
    targets = [serve.RunTarget(target=build_app(options), name=options.name, route_prefix=None) for options in wanted]
    return _deploy(targets, timeout_s)


def start_gateway(
    options: GatewayOptions | None = None,
    host: str = LOOPBACK,
    port: int = HTTP_PORT,
    route_prefix: str = "/",
    timeout_s: float = 180.0,
) -> DeploymentHandle:
    """Deploy the gateway on the connected cluster and wait until it answers.

    A Serve instance that already runs keeps its own HTTP settings, and has none if it was started without a proxy.

    Args:
        options: which rewards stand behind it, and its limits; defaults: the embedded CLIP, served by itself.
        host: address that a Serve instance started here listens on.
        port: its port.
        route_prefix: where the gateway's paths begin.
        timeout_s: seconds to wait for all replicas.

    Returns:
        A handle; `handle.score.remote([reference], prompts, rewards)`.

    Raises:
        RewardUnavailable: if the replicas do not come up; the application is removed again.
    """  # noqa: DOC502
    from reward_servers.gateway import build_gateway

    options = options or GatewayOptions()
    rewards = {name: _located(reward) for name, reward in options.rewards.items()}
    options = options.model_copy(update={"rewards": rewards})
    serve.start(
        proxy_location="HeadOnly", http_options={"host": host, "port": port},
        logging_config={"enable_access_log": False},
    )  # fmt: skip
    target = serve.RunTarget(target=build_gateway(options), name=options.name, route_prefix=route_prefix)
    (handle,) = _deploy([target], timeout_s)
    return handle


def stop_reward_app(name: str = "reward") -> None:
    """Remove an application; Serve itself stays for other applications, and ends with its cluster.

    Args:
        name: name of the application; one that does not exist is not missed.
    """
    try:
        serve.delete(name)
    except RayServeException:
        return


def running_replicas(name: str, deployment: str | None = None) -> int:
    """Replicas of an application that Serve knows to be running.

    Args:
        name: name of the application.
        deployment: name of one of its deployments; None counts all.

    Returns:
        Their number; 0 where there is no such application.
    """
    application = _applications().get(name)
    return _running(application, deployment) if application else 0


def replica_counts() -> dict[str, int]:
    """Replicas that Serve knows to be running, of every application that it has and is to keep.

    Returns:
        Their number, over all deployments of an application, by its name.
    """
    return {name: _running(app) for name, app in _applications().items() if app["status"] != "DELETING"}


def _running(application: dict[str, Any], deployment: str | None = None) -> int:
    chosen = [of for name, of in application["deployments"].items() if deployment in (None, name)]
    return sum(replica["state"] == "RUNNING" for of in chosen for replica in of["replicas"])


def _applications() -> dict[str, dict[str, Any]]:
    """What Serve's controller tells of each application, as in Serve's `ApplicationDetails`.

    `serve.status()` asks the same, and then builds a model of the answer that pickles Serve's request router and looks
    through every imported module for it: 0.03 CPU seconds a look in a driver, beside 0.001 for the answer itself.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return client.get_serve_details()["applications"] if client else {}


def _located(options: RewardAppOptions) -> RewardAppOptions:
    """Options whose files, where they are here, were looked at, and are found from every folder."""
    paths = {name: getattr(options, name) for name in ("model", "checkpoint")}
    here = {name: os.path.abspath(path) for name, path in paths.items() if path and os.path.exists(path)}
    if here:
        check_reward_files(options.reward, options.model, options.checkpoint)
    return options.model_copy(update=here)


def _deploy(targets: Sequence[serve.RunTarget], timeout_s: float) -> list[DeploymentHandle]:
    handles = serve.run_many(list(targets), wait_for_applications_running=False)
    started = time.monotonic()
    while True:
        known = _applications()
        states = {target.name: _state(known.get(target.name)) for target in targets}
        waiting = {name: state for name, state in states.items() if state[0] != "RUNNING"}
        if not waiting:
            return list(handles)
        waited = time.monotonic() - started
        failed = [name for name, (status, _) in waiting.items() if waited > timeout_s or status == "DEPLOY_FAILED"]
        if failed:
            for target in targets:
                stop_reward_app(target.name)
            reason = waiting[failed[0]][1]
            raise RewardUnavailable(f"the reward '{failed[0]}' did not start within {waited:.0f} s: {reason}")
        time.sleep(0.1)


def _state(application: dict[str, Any] | None) -> tuple[str, str]:
    """Status of an application, and in one line what Serve says about it."""
    if application is None:
        return "NOT_STARTED", "Serve does not know it yet"
    messages = [application["message"], *(of["message"] for of in application["deployments"].values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    message = errors[-1].rpartition("Error: ")[2] if errors else (lines or ["its replicas are still starting"])[-1]
    return application["status"], message
