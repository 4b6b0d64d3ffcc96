"""As much of the Hugging Face hub as a download needs; notes which files were asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class _Hub(BaseHTTPRequestHandler):
    server: DownloadServer

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        else:
            self._file(body=True)

    def _api(self, path: str) -> None:
        repository = "/".join(path.split("/")[:2])
        files = self.server.repositories.get(repository)
        if files is None:
            return self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            told: object = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        else:
            told = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _file(self, body: bool) -> None:
        repository, _, rest = unquote(urlsplit(self.path).path).lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        content = self.server.repositories.get(repository, {}).get(name)
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if body:
            self.server.fetched.append(name)
        told = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self._answer(200, content, told, body)

    def _answer(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class DownloadServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        url: what `HF_ENDPOINT` is to be.
        repositories: files by their names, by repository.
        fetched: names of the files that were asked for, in order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []


@contextmanager
def download_server() -> Iterator[DownloadServer]:
    """A server that answers while the block runs."""
    with DownloadServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
