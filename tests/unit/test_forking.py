"""The fork server and its client as processes: what a worker finds, who is not forked, and what happens without it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayjobs.forking import beside
from rayjobs.forking.server import alike
from tests.runs import ROOT, wait_for

SCRIPT = """
import atexit, json, os, signal, sys
import numpy as np
atexit.register(print, "ended", flush=True)
told = {
    "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd(), "name": __name__,
    "torch": "torch" in sys.modules, "ray": "ray" in sys.modules, "own": os.environ.get("OWN"),
    "threads": os.environ.get("OMP_NUM_THREADS"), "beside": os.path.dirname(__file__) == sys.path[0],
    "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "drawn": int(np.random.randint(2**31)),
    "libraries": os.environ.get("TORCHINDUCTOR_CACHE_DIR"), "frozen": sys.flags.isolated,
}
print(json.dumps(told), flush=True)
sys.stdin.readline()
sys.exit(3)
"""


def inherited() -> dict[str, str]:
    """The environment without what pytest changes from test to test."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@dataclass(frozen=True)
class Server:
    """A fork server, and who started it."""

    process: psutil.Process
    path: str
    starter: subprocess.Popen[str]


class Started(subprocess.Popen[str]):
    """A worker as Ray starts it: the client in Python's place."""

    def __init__(self, path: str, script: Path, **environment: str) -> None:
        command = [sys.executable, "-I", "-S", str(beside.CLIENT), path, str(script), "--node-ip", "λ"]
        super().__init__(
            command, cwd=script.parent, env=inherited() | environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self.stdout is not None
        self.told: dict[str, Any] = json.loads(self.stdout.readline())

    def finish(self) -> str:
        """Let it end, and give back what it says then."""
        return self.communicate("go on\n", timeout=60)[0]


STARTER = """
import sys
from rayjobs.forking import beside
server = beside.start()
print(*([server._process.pid, server._path] if server else ["none"]), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = inherited() | {"PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert starter.stdout is not None
    told = starter.stdout.readline().split()
    if told == ["none"]:
        pytest.skip("nothing is forked on this machine: it has GPUs, or is no Linux")
    yield Server(psutil.Process(int(told[0])), told[1], starter)
    starter.kill()
    starter.communicate()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "worker.py"
    path.write_text(SCRIPT)
    return path


def test_a_worker_is_what_ray_asked_for_and_has_imported_already(server: Server, script: Path) -> None:
    one, other = (Started(server.path, script, OMP_NUM_THREADS="2", RAY_JOB_ID=job) for job in ("1", "2"))
    for worker in (one, other):
        told = worker.told
        assert told["parent"] == server.process.pid
        assert told["arguments"] == [str(script), "--node-ip", "λ"]
        assert (told["folder"], told["name"], told["threads"]) == (str(script.parent), "__main__", "2")
        assert told["torch"]
        assert not told["ray"]  # which reads the environment when it is loaded
        assert told["libraries"]  # what torch put into the environment is still there
        assert told["beside"]
        assert told["interrupts"]
        assert told["children"]
    assert one.told["pid"] != other.told["pid"]
    assert one.told["drawn"] != other.told["drawn"]
    assert server.process.num_threads() == 1  # what forks has no thread that a fork would lose
    assert one.finish() == "ended\n"  # as Python ends, not as a fork does
    assert one.poll() is not None
    os.kill(other.told["pid"], signal.SIGKILL)
    assert other.finish() == ""
    wait_for(lambda: not server.process.children(), "the workers to be gone")


def test_another_environment_is_another_process(server: Server, script: Path) -> None:
    worker = Started(server.path, script, PYTHONHASHSEED="1", OWN="yes")
    assert worker.told["pid"] == worker.pid
    assert not worker.told["torch"]
    assert worker.told["own"] == "yes"
    assert worker.told["frozen"] == 0  # the client's flags are its own
    assert worker.finish() == "ended\n"
    assert worker.returncode == 3


def test_a_client_that_goes_away_leaves_nothing_behind(server: Server) -> None:
    """Before it has said anything, and in the middle of it."""
    for said in (b"", b"\0\0\0", (99).to_bytes(8, "big") + b"[["):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.path)
            client.sendall(said)
            wait_for(server.process.children, "somebody who listens")
        wait_for(lambda: not server.process.children(), "nobody to be left", patience=20)


def test_without_a_server_python_is_started(script: Path) -> None:
    server = beside.ForkServer()
    server._process.kill()
    worker = Started(str(server._path), script)
    server.close()
    assert worker.told["pid"] == worker.pid
    assert worker.finish() == "ended\n"


def test_a_server_ends_with_whoever_started_it(server: Server) -> None:
    server.starter.kill()
    server.starter.communicate()
    wait_for(lambda: not server.process.is_running() or server.process.status() == psutil.STATUS_ZOMBIE, "its end")


OURS = {"HOME": "/home/a", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("changes", "forked"),
    [
        ({}, True),
        ({"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}, True),  # torch is told by the worker
        ({"RAY_JOB_ID": "01000000", "SPT_NOENV": "1", "PWD": "/", "_": "/bin/bash"}, True),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, True),
        ({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}, False),  # read when OpenMP is loaded
        ({"PYTHONPATH": "/elsewhere"}, False),
        ({"LD_PRELOAD": "libother.so"}, False),
        ({"HF_HUB_OFFLINE": "1"}, False),
        ({"HOME": None}, False),
    ],
)
def test_who_may_be_forked(changes: dict[str, str | None], forked: bool) -> None:
    theirs = {name: value for name, value in (OURS | changes).items() if value is not None}
    assert alike(theirs, OURS) is forked


def test_nothing_is_forked_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayjobs.machine.installed_gpus", lambda: 1)
    assert beside.start() is None
