"""Several reward applications at once: started together, and counted with one question to Serve."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from ray import serve
from ray.serve.handle import DeploymentHandle

from reward_servers.client import _application_state, stop_reward_app
from reward_servers.options import RewardAppOptions
from sharpening.checks import check_clip_folder
from sharpening.rewards.base import RewardUnavailable


def start_reward_apps(wanted: Sequence[RewardAppOptions], timeout_s: float = 180.0) -> list[DeploymentHandle]:
    """Deploy reward applications side by side, each as `start_reward_app` does one, and wait until all answer.

    Args:
        wanted: what is served, and with what resources.
        timeout_s: seconds to wait for all replicas.

    Returns:
        A handle each.

    Raises:
        ModelFolderError: if a model is a folder here that is damaged; nothing is deployed.
        RewardUnavailable: if replicas do not come up; all the applications are removed again.
    """  # noqa: DOC502
    from reward_servers.app import build_app

    wanted = [_located(options) for options in wanted]
    serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
    targets = [serve.RunTarget(target=build_app(options), name=options.name, route_prefix=None) for options in wanted]
    handles = serve.run_many(targets, wait_for_applications_running=False)
    started = time.monotonic()
    waiting = [options.name for options in wanted]
    while waiting := [name for name in waiting if _application_state(name)[0] != "RUNNING"]:
        waited = time.monotonic() - started
        failed = [name for name in waiting if waited > timeout_s or _application_state(name)[0] == "DEPLOY_FAILED"]
        if failed:
            reason = _application_state(failed[0])[1]
            for options in wanted:
                stop_reward_app(options.name)
            raise RewardUnavailable(f"the reward '{failed[0]}' did not start within {waited:.0f} s: {reason}")
        time.sleep(0.1)
    return list(handles)


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
    """Options whose paths say the same in every folder, as replicas may run in another one."""
    if options.reward == "clip" and options.model and os.path.exists(options.model):
        check_clip_folder(options.model)
    paths = {name: getattr(options, name) for name in ("model", "checkpoint")}
    return options.model_copy(
        update={name: os.path.abspath(path) for name, path in paths.items() if path and os.path.exists(path)}
    )
