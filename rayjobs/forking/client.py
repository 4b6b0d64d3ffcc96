"""What Ray starts in Python's place: `python client.py SOCKET SCRIPT ARGUMENTS…` asks the fork server for the worker.

Every worker starts one, so it imports nothing beside Python's own.
"""

import json
import os
import socket
import sys

SIZE = 8  # bytes that say how many follow
YES = b"y"


def ask(path: str, arguments: list[str]) -> bool:
    """Have the server fork a worker with this process's environment and files, and wait for its end.

    Args:
        path: The server's socket.
        arguments: Script and arguments of the worker.

    Returns:
        Whether there was one. False where the server is gone or will not: nothing has been started then.
    """
    told = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            socket.send_fds(server, [len(told).to_bytes(SIZE, "big")], [0, 1, 2])
            server.sendall(told)
            if server.recv(1) != YES:
                return False
            while _is_open(server):  # the worker's end is open for as long as it lives, and says nothing
                pass
    except OSError:
        return False
    return True


def _is_open(server: socket.socket) -> bool:
    try:
        return bool(server.recv(1))
    except OSError:
        return False


if __name__ == "__main__":
    if not ask(sys.argv[1], sys.argv[2:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
