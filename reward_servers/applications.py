"""Deploying rewards on the connected cluster, asking Serve how they are, and taking them away."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

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
    application = serve.status().applications.get(name)
    deployments = application.deployments.items() if application else ()
    chosen = [status for key, status in deployments if deployment in (None, key)]
    return sum(count for d in chosen for state, count in d.replica_states.items() if state == "RUNNING")


def replica_counts() -> dict[str, int]:
    """Replicas that Serve knows to be running, of every application that it has and is to keep.

    Returns:
        Their number, over all deployments of an application, by its name.
    """
    return {
        name: sum(
            count for d in app.deployments.values() for state, count in d.replica_states.items() if state == "RUNNING"
        )
        for name, app in serve.status().applications.items()
        if app.status != "DELETING"
    }


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
    waiting = [target.name for target in targets]
    while waiting := [name for name in waiting if _application_state(name)[0] != "RUNNING"]:
        waited = time.monotonic() - started
        failed = [name for name in waiting if waited > timeout_s or _application_state(name)[0] == "DEPLOY_FAILED"]
        if failed:
            reason = _application_state(failed[0])[1]
            for target in targets:
                stop_reward_app(target.name)
            raise RewardUnavailable(f"the reward '{failed[0]}' did not start within {waited:.0f} s: {reason}")
        time.sleep(0.1)
    return list(handles)


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
