"""Deploying rewards on the connected cluster, asking Serve how they are, and taking them away."""

from __future__ import annotations

import os
import time

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from reward_servers.gateway_options import GatewayOptions
from reward_servers.options import RewardAppOptions
from sharpening.checks import check_clip_folder
from sharpening.rewards.base import RewardUnavailable

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
        ModelFolderError: if the model is a folder here that is damaged; nothing is deployed.
        RewardUnavailable: if the replicas do not come up; the application is removed again.
    """  # noqa: DOC502
    from reward_servers.app import build_app

    options = _with_absolute_model(options or RewardAppOptions())
    serve.start(proxy_location="HeadOnly" if http else "Disabled", logging_config={"enable_access_log": False})
    return _deploy(build_app(options), options.name, None, timeout_s)


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
    rewards = {name: _with_absolute_model(reward) for name, reward in options.rewards.items()}
    options = options.model_copy(update={"rewards": rewards})
    serve.start(
        proxy_location="HeadOnly", http_options={"host": host, "port": port},
        logging_config={"enable_access_log": False},
    )  # fmt: skip
    return _deploy(build_gateway(options), options.name, route_prefix, timeout_s)


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


def _with_absolute_model(options: RewardAppOptions) -> RewardAppOptions:
    """Options whose model, if it is a folder here, was looked at and is found from every folder."""
    if not options.model or not os.path.exists(options.model):
        return options
    if options.reward == "clip":
        check_clip_folder(options.model)
    return options.model_copy(update={"model": os.path.abspath(options.model)})


def _deploy(application: serve.Application, name: str, route_prefix: str | None, timeout_s: float) -> DeploymentHandle:
    target = serve.RunTarget(target=application, name=name, route_prefix=route_prefix)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    started = time.monotonic()
    while (state := _application_state(name))[0] != "RUNNING":
        waited = time.monotonic() - started
        if state[0] == "DEPLOY_FAILED" or waited > timeout_s:
            stop_reward_app(name)
            raise RewardUnavailable(f"the reward '{name}' did not start within {waited:.0f} s: {state[1]}")
        time.sleep(0.1)
    return handle


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
