"""A Ray head of its own for a test, and jobs submitted to it as a user submits them."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from rayjobs.runtime.cluster import TOO_SLOW
from tests.listening import free_port
from tests.runs import PATIENCE_S, ROOT, wait_for

RUNS = "Ray runtime started"
"""What `ray start` says once the head runs."""
SECRETS = {"HF_TOKEN": "hf_s3cretOfTheHub", "OPENAI_API_KEY": "sk-s3cretOfTheGrader"}


@dataclass(frozen=True)
class Head:
    """A head node with its dashboard, which asks for a token.

    Attributes:
        address: the dashboard's.
        environment: of the shell that started it, which has the token and other people's secrets.
        pid: of the process above all of its processes, and those of its jobs.
    """

    address: str
    environment: dict[str, str]
    pid: int

    def jobs(self) -> str:
        """What the dashboard tells about the jobs."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return httpx.get(f"{self.address}/api/jobs/", headers=token).raise_for_status().text

    def submit(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """`ray job submit -- python rayjobs/rlhf.py …`, which ends with the job and writes its log."""
        return subprocess.Popen(
            [_ray(), "job", "submit", "--address", self.address, "--working-dir", str(ROOT), "--",
             "python", "rayjobs/rlhf.py", *arguments],
            cwd=ROOT, env=self.environment, start_new_session=True, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


@contextmanager
def head(home: Path, log: Path) -> Iterator[Head]:
    """`ray start --head` on ports of its own, ended with the block.

    Args:
        home: home folder of its user.
        log: where its processes write.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "PYTEST"))}
    environment = kept | SECRETS | {
        "HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone, as docs/cluster.md has it
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",  # its end waits for nobody: Serve, which stays, would take 30 s
    }  # fmt: skip
    dashboard, agent, client = (free_port() for _ in range(3))
    command = [_ray(), "start", "--head", "--block", "--port", "0", "--num-cpus", "8", "--disable-usage-stats",
               "--dashboard-port", str(dashboard),
               "--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client)]  # fmt: skip
    for last in (False, False, True):
        with _process(command, home, environment, log) as process:
            found = Head(f"http://127.0.0.1:{dashboard}", environment, process.pid)
            if _comes_up(process, found, log):
                yield found
                return
        said = log.read_text()
        assert TOO_SLOW in said, said
        assert not last, said


@contextmanager
def _process(
    command: list[str], home: Path, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, ended with the block."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=home, env=environment | {"PYTHONUNBUFFERED": "1"}, start_new_session=True, stdout=stream,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _comes_up(process: subprocess.Popen[bytes], head: Head, log: Path) -> bool:
    """Wait for `ray start` to say that the head runs, or to end: one that it gives up has answered before."""
    wait_for(lambda: process.poll() is not None or (RUNS in log.read_text() and _answers(head)), "the head")
    return process.poll() is None


def _answers(head: Head) -> bool:
    """Whether there is somebody, who wants a token, and what takes jobs is there behind the door."""
    try:
        refused = httpx.get(f"{head.address}/api/jobs/").status_code in (401, 403)
        return refused and head.jobs() is not None
    except (httpx.TransportError, httpx.HTTPStatusError):
        return False


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))
