"""The reward application: `serve run reward_servers.app:build reward=clip num_replicas=2`.

`build` takes the options of `RewardAppOptions`; `app` is bound with the defaults, for `serve build`. The application
is made for deployment handles and has no HTTP ingress of its own.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from reward_servers.deployment import RewardServer
from reward_servers.options import RewardAppOptions


def build_app(options: RewardAppOptions) -> serve.Application:
    """Bind the deployment.

    Args:
        options: what is served, and with what resources.

    Returns:
        An application for `serve.run`.
    """
    threads = str(options.num_threads)
    # Threads that wait by spinning starve those they wait for when cores are shared: passive waiting made scoring on
    # two threads ten times faster on a busy two-core machine, and costs nothing that shows on an idle one.
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    deployment = serve.deployment(RewardServer).options(
        name=options.deployment_name,
        num_replicas=options.num_replicas,
        max_ongoing_requests=options.max_ongoing_requests,
        health_check_period_s=options.health_check_period_s,
        graceful_shutdown_timeout_s=5.0,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=2,
        ray_actor_options={
            "num_cpus": options.num_cpus,
            "num_gpus": options.num_gpus,
            "label_selector": options.node_labels or None,
            "runtime_env": {"env_vars": environment},
        },
        user_config={
            "max_batch_requests": options.max_batch_requests,
            "batch_wait_timeout_s": options.batch_wait_timeout_s,
        },
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(options.reward, options.scorer_options(), options.num_threads)


def build(args: dict[str, Any]) -> serve.Application:
    """Builder for `serve run` and for `args:` of a Serve configuration file.

    Args:
        args: options of `RewardAppOptions` by name; values may be text.

    Returns:
        The application.
    """
    return build_app(RewardAppOptions.model_validate(args))


app = build({})
