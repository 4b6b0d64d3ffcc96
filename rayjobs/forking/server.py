"""The fork server: `python -m rayjobs.forking.server FILE`. Imports what workers compute with, and becomes them.

It ends when its standard input does, that is with whoever started it. Ray is not imported here: its C++ part reads the
worker's environment when it is loaded, so every worker loads it for itself.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from rayjobs.forking.client import SIZE, YES
from sharpening.startup import loading

IMPORTED = (
    "sharpening.policies.sdxl", "sharpening.prepare", "sharpening.rewards.clip", "sharpening.rewards.lean_open_clip",
    "rayjobs.runtime.lean_deepspeed",
)  # fmt: skip
"""What workers compute with, as far as most of them do; what is missing here they import for themselves."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Read when a library is loaded, and here always 1; every worker sets torch's threads itself besides."""
WAITING = "OMP_WAIT_POLICY"
"""Read when OpenMP is loaded; how threads wait for one another, of which there must be two."""
STARTS = ("_", "SHLVL", "PWD", "OLDPWD", "SPT_NOENV")
"""Set by the shell through which Ray starts a worker, and by Ray for the library that titles processes."""


@dataclass(frozen=True)
class Worker:
    """What a forked process is to become.

    Attributes:
        arguments: Script and arguments.
        environment: All of its environment.
        inherited: The server's, as that began with it.
        folder: Its working folder.
        files: Standard input, output and error.
        client: Connection to the process that Ray started, which waits until this end is closed.
    """

    arguments: list[str]
    environment: dict[str, str]
    inherited: dict[str, str]
    folder: str
    files: list[int]
    client: socket.socket

    def begin(self) -> None:
        """Run the script as Python would have; returns at its end."""
        for place, file in enumerate(self.files):
            os.dup2(file, place)
            os.close(file)
        for name in self.inherited.keys() - self.environment.keys():
            os.environ.pop(name, None)
        os.environ.update(self.environment)  # beside what libraries have set when they were imported
        os.chdir(self.folder)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(random.SystemRandom().getrandbits(32))  # or all workers draw the same
        sys.argv = self.arguments
        sys.path.insert(0, os.path.dirname(self.arguments[0]))
        runpy.run_path(self.arguments[0], run_name="__main__")


def alike(theirs: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether a process with one environment may go on as one with another, after libraries have read it.

    Args:
        theirs: The worker's.
        ours: The server's.

    Returns:
        Whether they differ in nothing but what Ray reads, which it does anew, and numbers of threads; in how threads
        wait only where there is one.
    """
    free = {*THREADS, *STARTS} | ({WAITING} if theirs.get(THREADS[0]) == "1" else set())
    names = (theirs.keys() | ours.keys()) - free
    return all(theirs.get(name) == ours.get(name) for name in names if not name.startswith("RAY_"))


def serve(listener: socket.socket, inherited: dict[str, str]) -> Worker | None:
    """Fork a process for every client.

    Args:
        listener: Where they come.
        inherited: The environment that this process began with.

    Returns:
        In a forked process what it is to become; in the server, once its standard input has ended, `None`.
    """
    # An interrupt is the run's to handle, which needs its workers until then; and nobody asks how a worker ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if 0 in ready:
                return None
            client, _ = listener.accept()
            if not os.fork():
                break
            client.close()
    listener.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _read(client, inherited)


def _read(client: socket.socket, inherited: dict[str, str]) -> Worker | None:
    """What the client wants, if it can have it."""
    first, files, _, _ = socket.recv_fds(client, SIZE, 3)
    try:
        size = int.from_bytes(_rest(client, SIZE, first), "big")
        arguments, environment, folder = json.loads(_rest(client, size))
    except EOFError:
        return None
    if not alike(environment, inherited):
        return None
    client.sendall(YES)
    return Worker(arguments, environment, inherited, folder, files, client)


def _rest(client: socket.socket, size: int, told: bytes = b"") -> bytes:
    """What a client says, whole; an `EOFError` if it goes away before."""
    while len(told) < size:
        part = client.recv(size - len(told))
        if not part:
            raise EOFError
        told += part
    return told


@loading()
def import_all() -> None:
    """Import what there is of `IMPORTED`."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main(file: int) -> None:
    """Import, fork; in a forked process, work.

    Args:
        file: Descriptor of the socket at which clients come; those that are too early wait.
    """
    inherited = dict(os.environ)
    with socket.socket(fileno=file) as listener:
        import_all()
        gc.collect()
        gc.freeze()  # a search for garbage would copy every page that it looks at
        worker = serve(listener, inherited)
    if worker is not None:
        worker.begin()


if __name__ == "__main__":
    main(int(sys.argv[1]))
