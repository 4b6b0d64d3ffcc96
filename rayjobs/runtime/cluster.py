"""Joining or starting Ray: addresses, tokens, settings, and what workers can import."""

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayjobs import machine
from rayjobs.errors import OptionError
from rayjobs.forking import beside
from rayjobs.forking.beside import ForkServer
from rayjobs.options import JobOptions
from rayjobs.options.cluster import LOOPBACK, RayOptions, check_bind, cluster_to_join
from rayjobs.runtime.reservations import threads_wanted

ROOT = Path(__file__).resolve().parents[2]
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
SETTINGS = {
    # On a busy machine importing torch can take a minute, which is no failure.
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # Ray Train hears of a checkpoint, and of the end, when it next asks: every two seconds by itself.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about hidden GPUs
}
OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would tell its makers about the run, over the network
    # A Ray of our own has no dashboard and a few processes, and what watches them takes a tenth of a core.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # milliseconds between two looks at every process of the machine
    # Nobody reads what processes print but in their files; Ray would list those ten times a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # seconds between two looks of Serve at its replicas
    # Its learners share the machine: what they send one another need not leave it, whatever the machine's name means.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}

REACHED_S = 20
"""Seconds in which a cluster has to take a connection."""

TOO_SLOW, STARTS = "timed out during startup", 3
"""What Ray says of itself when its first process needs more than half a minute, as on a machine that is busy; and how
often it is started before that is believed. What a start leaves behind ends with this process."""


def has_token() -> bool:
    """Whether Ray would find an authentication token: in the environment, in a file it names, or in the home."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    places = [Path(named)] if named else []
    places.append(Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or any(place.is_file() for place in places)


def authentication(joins: bool) -> dict[str, str]:
    """Environment that decides Ray's authentication.

    A local `ray.init()` turns token authentication on and, where the home has no token, writes one there: from then on
    `ray start --head` asks for tokens too and a plain `ray job submit` is refused. So a local Ray of ours gets a token
    of its own, which lives in this process tree alone. Joining a cluster by address, Ray uses a token only when told
    to; a cluster without authentication ignores it.

    Args:
        joins: Whether the run joins a cluster.

    Returns:
        Variables to set; none when `RAY_AUTH_MODE` has decided already.
    """
    if os.environ.get("RAY_AUTH_MODE"):
        return {}
    if has_token():
        return {"RAY_AUTH_MODE": "token"}
    return {} if joins else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def use(variables: dict[str, str]) -> None:
    """Set what `authentication` chose.

    Args:
        variables: Environment variables.
    """
    os.environ.update(variables)
    if variables and "ray" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined, unused-ignore]

        Config.initialize("")  # it read the environment when it was imported; Ray itself has it read again this way


@dataclass(frozen=True)
class Connection:
    """How the run came to its Ray.

    Attributes:
        owned: Whether this run started it, and it ends with the run.
        made: Whether this run connected to it.
        fork_server: What its workers are forked from; ends with it.
    """

    owned: bool
    made: bool
    fork_server: ForkServer | None = None

    def close(self) -> None:
        """End what this run started, leave what it joined."""
        import ray

        if self.made:
            ray.shutdown()
        if self.fork_server:
            self.fork_server.close()


def connect(options: JobOptions, namespace: str) -> Connection:
    """Join the cluster that options or environment name, or start a local Ray.

    Args:
        options: The run's options.
        namespace: For the names of actors.

    Returns:
        The connection, to be closed at the end.

    Raises:
        OptionError: If the cluster does not answer.
    """  # noqa: DOC502
    return join(options, namespace, threads_wanted(options))


def join(options: RayOptions, namespace: str, threads: int) -> Connection:
    """Join a cluster, or start a local Ray.

    Args:
        options: The cluster that they or the environment name, or where a local Ray listens.
        namespace: For the names of actors.
        threads: Compute threads of the processes to come: a local Ray has room for them all.

    Returns:
        The connection, to be closed at the end.

    Raises:
        OptionError: If the cluster does not answer.
    """
    check_bind(options)
    address = cluster_to_join(options.ray_address)
    use(authentication(joins=bool(address)))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return Connection(owned=False, made=False)
    common: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        # For this run alone: as many CPUs as it has threads, so that nothing waits to be scheduled.
        return start(max(machine.cpus(), threads), options.bind or LOOPBACK, **common)
    if IN_A_JOB not in os.environ:
        # A submitted job brings its working directory; a driver beside the cluster shares its file system.
        common["runtime_env"] = {"env_vars": {"PYTHONPATH": _search_path()}}
    try:
        _reach(address)
        ray.init(address=address, **common)
    except (OSError, ray.exceptions.AuthenticationError) as error:
        lines = str(error).strip().splitlines()
        raise OptionError(
            "ray_address", f"no Ray cluster lets us in at {address} ({lines[0] if lines else type(error).__name__})",
            "start one with `ray start --head`, or set RAY_AUTH_MODE=token if it asks for a token",
        ) from error  # fmt: skip
    return Connection(owned=False, made=True)


def start(cpus: int, address: str = LOOPBACK, **told: Any) -> Connection:
    """Start a local Ray, with a fork server beside it.

    It has no dashboard: that is ten processes, and ends with the run. `ray start --head` brings one to stay.

    Args:
        cpus: CPUs that it hands out.
        address: Of this machine; where it listens.
        **told: Further arguments of `ray.init`.

    Returns:
        The connection, to be closed at the end.
    """
    os.environ["PYTHONPATH"] = _search_path()  # Ray's workers inherit it
    for name, value in (SETTINGS | OWN).items():
        os.environ.setdefault(name, value)
    import ray
    from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

    patiently = Retrying(
        retry=retry_if_exception_message(match=f".*{TOO_SLOW}"), stop=stop_after_attempt(STARTS), reraise=True
    )
    fork_server = beside.start()
    connection = Connection(owned=True, made=True, fork_server=fork_server)
    with ExitStack() as failed, listening_at(address) as own:
        failed.callback(connection.close)
        patiently(ray.init, address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address=own, **told)
        if fork_server:
            fork_server.announce()
        failed.pop_all()
    return connection


def has_dashboard() -> bool:
    """Whether the Ray that this process has joined has a dashboard, which also answers questions about actors.

    Ray's own `get_dashboard_url` takes the usual address for granted in a worker, such as a sweep's trial.
    """
    from ray._private.services import get_webui_url_from_internal_kv

    return bool(get_webui_url_from_internal_kv())


@contextmanager
def listening_at(address: str) -> Iterator[str]:
    """Have a Ray that starts in the block take an address as it is.

    Asked for 127.0.0.1, Ray takes the machine's outward address in its stead, and listens on every interface, but where
    it knows itself to be alone on a machine, as on macOS. `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` says the same here,
    which Ray reads when it is imported: too early for us.

    Args:
        address: Of this machine.

    Yields:
        The address, for `ray.init`.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = address != LOOPBACK
    try:
        yield address
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _reach(address: str) -> None:
    """Look whether anybody is there: Ray would ask three hundred times, for forty seconds each.

    Where Ray looks, that is, which for a loopback address is the machine's outward one (see `listening_at`).

    Args:
        address: Of the cluster.

    Raises:
        ConnectionError: If nobody is.
    """
    from ray._private.services import canonicalize_bootstrap_address

    host, _, port = (canonicalize_bootstrap_address(address) or "").rpartition(":")
    if not port.isdecimal() or "/" in host:
        return  # `auto`, ray://…: Ray finds those itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
    except OSError as error:
        raise ConnectionError(f"{host}:{port}: {error.strerror or error}") from error


def _search_path() -> str:
    """Where Python looks for modules in every process of a run: this project, and what the user's shell names."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.pathsep.join(dict.fromkeys(paths))
