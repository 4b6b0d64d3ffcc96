"""The fork server beside a local Ray: started before it, known to whoever starts workers in it, ended after it."""

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rayjobs import machine
from rayjobs.forking.server import THREADS

CLIENT = Path(__file__).with_name("client.py")
KEY = b"sharpening/fork_server"
"""Where a Ray keeps how to reach its fork server, for the drivers that join it."""


class ForkServer:
    """A fork server; it imports while Ray starts.

    Its environment is this process's, which Ray's workers inherit too: set it before.
    """

    def __init__(self) -> None:
        # Only this user can reach a socket in there.
        self._folder = tempfile.TemporaryDirectory(prefix="sharpening-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "fork"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen(128)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rayjobs.forking.server", str(listener.fileno())],
                env=os.environ | dict.fromkeys(THREADS, "1"), pass_fds=[listener.fileno()], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def announce(self) -> None:
        """Tell the Ray that this process has joined."""
        # Python's flags: nothing but its own library, whatever the environment says.
        command = shlex.join([sys.executable, "-I", "-S", str(CLIENT), str(self._path)])
        _kept().internal_kv_put(KEY, command.encode(), True, None)

    def close(self) -> None:
        """End it; workers that it has forked go on."""
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


def start() -> ForkServer | None:
    """Start a fork server for a local Ray.

    Returns:
        The server; `None` where forked workers might not work: with GPUs, or outside Linux.
    """
    return ForkServer() if sys.platform == "linux" and not machine.installed_gpus() else None


def executable() -> str | None:
    """What the Ray that this process has joined is to start in Python's place for workers that compute.

    Returns:
        A command for `py_executable`; `None` where it is Python, as where no Ray has been joined.
    """
    from ray._private.worker import global_worker

    found = _kept().internal_kv_get(KEY, None) if global_worker.connected else None
    return found.decode() if found else None


def _kept() -> Any:
    """What the joined Ray keeps for its drivers; `ray.experimental.internal_kv` may be of another one started since."""
    from ray._private.worker import global_worker

    return global_worker.gcs_client


def runtime_env(variables: dict[str, str]) -> dict[str, Any]:
    """Runtime environment of a worker that computes.

    Args:
        variables: Its environment variables.

    Returns:
        What Ray is told.
    """
    command = executable()
    return {"env_vars": variables} | ({"py_executable": command} if command else {})
