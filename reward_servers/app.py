"""The reward application: `serve run reward_servers.app:build reward=clip num_replicas=2`.

`build` takes the options of `RewardAppOptions`; `app` is bound with the defaults, for `serve build`. The application
is made for deployment handles and has no HTTP ingress of its own: `reward_servers.gateway` is one for all rewards.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from reward_servers.deployment import RewardServer
from reward_servers.options import RewardAppOptions


def build_app(options: RewardAppOptions, deployment_name: str | None = None) -> serve.Application:
    """Bind the deployment.

    Args:
        options: what is served, and with what resources.
        deployment_name: name of the deployment; by default that of the options.

    Returns:
        An application for `serve.run`.
    """
    deployment = serve.deployment(RewardServer).options(
        name=deployment_name or options.deployment_name,
        logging_config=LoggingConfig(enable_access_log=False),
        **options.deployment_options(),
    )
    return deployment.bind(options)


def build(args: dict[str, Any]) -> serve.Application:
    """Builder for `serve run` and for `args:` of a Serve configuration file.

    Args:
        args: options of `RewardAppOptions` by name; values may be text.

    Returns:
        The application.
    """
    return build_app(RewardAppOptions.model_validate(args))


app = build({})
