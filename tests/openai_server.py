"""A small OpenAI-compatible endpoint on loopback that answers as told, and remembers what it was asked."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np
from PIL import Image

CRITERIA = ("accuracy_to_prompt", "originality", "visual_quality", "internal_consistency", "emotional_resonance")
TOKENS = {"prompt_tokens": 700, "completion_tokens": 40, "total_tokens": 740}


@dataclass(frozen=True)
class Received:
    """One request, read."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    prompt: str
    image: np.ndarray
    at: float


@dataclass(frozen=True)
class Reply:
    """An answer: the model's words, or a body of its own, or a connection that ends."""

    words: str | None = None
    status: int = 200
    body: Any = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: Literal["before", "within"] | None = None


Script = Reply | Callable[[Received], Reply]


def marks_of(image: np.ndarray, prompt: str) -> dict[str, float]:
    """The marks that the endpoint gives by itself: five different numbers of image and prompt."""
    red, green, blue = (float(value) for value in image.mean(axis=(0, 1), dtype=np.float64) / 2.55)
    values = (red, green, blue, len(prompt) % 101, int(image[0, 0, 0]) % 101)
    return dict(zip(CRITERIA, values, strict=True))


def score_of(image: np.ndarray, prompt: str) -> float:
    """Their mean."""
    return float(np.mean(list(marks_of(image, prompt).values())))


def completion(words: str | None, **message: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    finish = message.pop("finish_reason", "stop")
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": words, **message}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": TOKENS}


def refusal(status: int, message: str, **more: Any) -> Reply:
    """A refusal in OpenAI's form."""
    return Reply(status=status, body={"error": {"message": message, "type": "error", **more}})


class OpenAIServer:
    """What is asked and what is answered.

    Attributes:
        url: base URL.
        received: all requests so far.
        script: by prompt, the replies to its requests in turn, the last one for all further; other prompts get their
            marks.
        always: a reply to every request instead.
        peak: requests that were open at the same time, at most.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget what was asked and told."""
        with self._lock:
            self.received: list[Received] = []
            self.script: dict[str, list[Script]] = {}
            self.always: Script | None = None
            self.peak = self._open = 0

    def asked(self, prompt: str) -> list[Received]:
        """Requests for a prompt."""
        return [request for request in self.received if request.prompt == prompt]

    @contextmanager
    def reply_to(self, request: Received) -> Iterator[Reply]:
        """Choose the reply; the request counts as open meanwhile."""
        with self._lock:
            self._open += 1
            self.peak = max(self.peak, self._open)
            self.received.append(request)
            script = self.script.get(request.prompt)
            chosen = self.always or (None if not script else script[0] if len(script) == 1 else script.pop(0))
        try:
            reply = chosen(request) if callable(chosen) else chosen
            yield reply or Reply(json.dumps(marks_of(request.image, request.prompt)))
        finally:
            with self._lock:
                self._open -= 1


def read(handler: BaseHTTPRequestHandler) -> Received:
    """Read one request as an endpoint would."""
    body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
    text, image = body["messages"][1]["content"]
    prompt = text["text"].partition("<prompt>\n")[2].partition("\n</prompt>")[0]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        pixels = np.asarray(picture)
    headers = {name.lower(): value for name, value in handler.headers.items()}
    return Received(handler.path, headers, body, prompt, pixels, time.monotonic())


def handler_of(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    """The handler of one endpoint's connections."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # noqa: N802
            with server.reply_to(read(self)) as reply:
                server.closing.wait(reply.delay_s)
                if reply.drop == "before":
                    self.hang_up()
                    return
                data = reply.raw
                if data is None:
                    data = json.dumps(reply.body or completion(reply.words)).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if reply.drop == "within" else data)
                if reply.drop == "within":
                    self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, OSError):  # a client that gave up waiting
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (ConnectionError, OSError, ValueError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """Run an endpoint on a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        http.daemon_threads = True
        server = OpenAIServer(http.server_port)
        http.RequestHandlerClass = handler_of(server)
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()
