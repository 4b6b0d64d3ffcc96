"""Rewards that the cluster serves already: a run that asks them makes sure first that they are the ones it names."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rayjobs.errors import OptionError
from rayjobs.rewards import RewardPlan

OPTION = "served_rewards"
ANSWER_S = 60.0  # for a replica that is scoring other runs' images
SERVING = ("device", "batch_size")  # keyword arguments of a scorer that do not change what it means


def check_joined(apps: Mapping[str, str], plans: Sequence[RewardPlan], owned: bool) -> None:
    """Refuse applications that are not there, or serve something else.

    Args:
        apps: Names of applications by the reward's name.
        plans: The run's rewards.
        owned: Whether the run started its Ray itself, where nothing can be served yet.

    Raises:
        OptionError: If one is not there, does not answer, or serves another reward.
    """
    if owned:
        raise OptionError(
            OPTION, "a run that starts a Ray of its own finds no reward there",
            "join the cluster that serves it with --ray_address, or leave it out",
        )  # fmt: skip
    for plan in plans:
        served = _ask(apps[plan.name])
        wanted = {"reward": plan.term.reward, **_located(plan.scorer_options())}
        found = {"reward": served["reward"], **_located(served["weights"])}
        settings = sorted((wanted.keys() | found.keys()) - {"reward", *SERVING})
        for name in ("reward", *settings):
            if wanted.get(name) != found.get(name):
                raise OptionError(
                    OPTION,
                    f"'{apps[plan.name]}' serves {plan.name} with {name} {_said(found.get(name))}, and this run names "
                    f"{_said(wanted.get(name))}",
                    "name the same, or serve another application",
                )


def _ask(app: str) -> dict[str, Any]:
    """What a replica of an application says about itself."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        told: dict[str, Any] = serve.get_app_handle(app).statistics.remote().result(timeout_s=ANSWER_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise OptionError(
            OPTION, f"no reward application '{app}' answers on this cluster ({type(error).__name__})",
            f"start it with `serve run --name {app} reward_servers.app:build reward=…`, or leave it out",
        ) from error  # fmt: skip
    return told


def _located(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a scorer; a file or folder that is here by its full path."""
    here = {
        name: os.path.abspath(value)
        for name, value in options.items()
        if isinstance(value, str) and os.path.exists(value)
    }
    return {**options, **here}


def _said(value: Any) -> str:
    return "its own" if value is None else str(value)
