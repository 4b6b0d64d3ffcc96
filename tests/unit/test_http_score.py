"""The HTTP client against servers that misbehave, over real sockets; without Ray."""

import json
import pickle
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from reward_servers.gateway_options import Limits
from reward_servers.http_client import HttpRewardError, HttpScore, split
from reward_servers.images import read_images
from sharpening.rewards import RewardUnavailable, load_reward

LIMITS = Limits(max_items=4)
RNG = np.random.default_rng(0)
GOOD = {"score": 1.5, "failure": None}
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Lists rewards, and answers requests for scores as the script says, then with the images' mean brightness."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        entries = [{"name": name, "available": True, "replicas": 1} for name in self.server.rewards]
        limits = LIMITS.model_dump() | {"max_of_a_later_version": 1}
        self.answer(200, {"rewards": entries, "limits": limits})

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((time.monotonic(), self.body, dict(self.headers)))
        if self.server.script:
            self.server.script.pop(0)(self)
        else:
            self.scores()

    def scores(self) -> None:
        images = read_images([b64decode(item["image"]) for item in self.body["items"]], LIMITS)
        entries = [{"score": float(mean(image[None])[0]), "failure": None} for image in images]
        self.answer(200, {"results": {self.body["rewards"][0]: entries}})

    def answer(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = []
        self.asked: list[tuple[float, Any, dict[str, str]]] = []
        self.rewards = ["clip"]
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def mean(images: np.ndarray) -> np.ndarray:
    return (images.mean(axis=(1, 2, 3)) / 3).astype(np.float32)


def pictures(count: int) -> tuple[np.ndarray, list[str]]:
    return RNG.integers(0, 256, (count, 6, 5, 3), np.uint8), [f"prompt {i}" for i in range(count)]


def test_a_call_is_split_within_the_servers_limits_and_put_together_in_order(server: Server) -> None:
    score = load_reward("http", model=server.url, device="cpu", batch_size=32)
    images, prompts = pictures(10)
    scores = score(images, prompts)
    assert scores.values.tobytes() == mean(images).tobytes()
    assert scores.failures == {}
    sent = [[item["prompt"] for item in body["items"]] for _, body, _ in server.asked]
    assert sent == [prompts[:4], prompts[4:8], prompts[8:]]
    assert all(body["rewards"] == ["clip"] for _, body, _ in server.asked)
    assert score(*pictures(0)).values.shape == (0,)


def test_pixels_and_bytes_limit_a_request_too() -> None:
    images, prompts = pictures(5)
    by_pixels = split(images, prompts, Limits(max_pixels=65))  # 30 pixels each
    assert [len(part) for part in by_pixels] == [2, 2, 1]
    whole = len(json.dumps({"items": next(split(images, prompts, Limits()))}))
    for limit in (whole, 2 * whole // 3, 10):
        parts = list(split(images, prompts, Limits(max_body_bytes=1024 + limit)))
        assert [item["prompt"] for part in parts for item in part] == prompts
        sizes = [len(json.dumps({"items": part, "rewards": ["x" * 64]})) for part in parts]
        assert all(size <= 1024 + limit or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    escaped = list(split(images, ["\U0001f600" * 4000] * 5, Limits(max_body_bytes=1024 + 100_000)))
    assert [len(json.dumps({"items": part})) < 101_024 for part in escaped] == [True] * len(escaped)


def late(handler: Handler) -> None:
    time.sleep(2.5)


@pytest.mark.parametrize(
    "trouble",
    [
        lambda handler: handler.answer(503, {"detail": "come back"}, Retry_After="0"),
        lambda handler: handler.answer(504, b"<html>"),
        lambda handler: handler.answer(500, b""),
        lambda handler: handler.answer(429, {"detail": "slowly"}),
        Handler.drop,
        lambda handler: (handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"), handler.drop()),
        late,
    ],
    ids=["503", "504", "500", "429", "dropped", "cut off", "late"],
)
def test_what_may_pass_is_asked_for_again_and_gives_the_same_scores(server: Server, trouble: Answer) -> None:
    server.script = [trouble, trouble]
    images, prompts = pictures(3)
    timeout = 1.0 if trouble is late else 60.0
    scores = HttpScore(server.url, request_timeout_s=timeout, deadline_s=60)(images, prompts)
    assert scores.values.tobytes() == mean(images).tobytes()
    assert len(server.asked) == 3 or (trouble is late and len(server.asked) > 3)
    assert server.asked[0][1] == server.asked[-1][1]


def test_the_server_says_when_to_come_back(server: Server) -> None:
    server.script = [lambda handler: handler.answer(503, {"detail": "later"}, Retry_After="1")]
    HttpScore(server.url, deadline_s=60)(*pictures(1))
    first, second = (at for at, _, _ in server.asked)
    assert second - first >= 0.99


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: handler.answer(422, {"detail": "image 0 is empty"}), "rejected"),
        (lambda handler: handler.answer(413, b"too large"), "rejected"),
        (lambda handler: handler.answer(200, b"{"), "unreadable answer"),
        (lambda handler: handler.answer(200, {"results": {"other": []}}), "unreadable answer"),
        (lambda handler: handler.answer(200, {"results": {"clip": [GOOD]}}), "unreadable answer"),
        (lambda handler: handler.answer(200, {"results": {"clip": [{"score": "high"}] * 2}}), "unreadable answer"),
    ],
)  # fmt: skip
def test_what_will_not_pass_fails_those_images_only(server: Server, answer: Answer, reason: str) -> None:
    server.script = [Handler.scores, answer]
    images, prompts = pictures(6)
    scores = HttpScore(server.url, deadline_s=60)(images, prompts)
    assert scores.failures == {4: reason, 5: reason}
    assert scores.values[:4].tobytes() == mean(images[:4]).tobytes()
    assert np.isnan(scores.values[4:]).all()
    assert len(server.asked) == 2


def test_reasons_of_single_images_are_passed_on(server: Server) -> None:
    entries = [
        {"score": 1.5, "failure": None},
        {"score": None, "failure": "not finite"},
        {"score": None, "failure": None},
    ]
    server.script = [lambda handler: handler.answer(200, {"results": {"clip": entries}})]
    scores = HttpScore(server.url)(*pictures(3))
    assert scores.failures == {1: "not finite", 2: "not finite"}
    assert scores.values[0] == 1.5


def test_at_the_deadline_the_reward_is_unavailable_and_says_why(server: Server) -> None:
    server.script = [
        lambda handler: handler.answer(503, {"detail": "no replica of clip is there"}, Retry_After="60")
    ] * 99
    score = HttpScore(server.url, request_timeout_s=1, deadline_s=1)
    with pytest.raises(RewardUnavailable, match=r"gave no answer for 1 s \(503 no replica of clip is there\)"):
        score(*pictures(1))
    with pytest.raises(RewardUnavailable, match="gave no answer for 1 s"):
        HttpScore("http://127.0.0.1:9", deadline_s=1)  # nobody listens


def test_the_token_comes_from_the_environment_and_goes_nowhere_else(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret-1")
    score = HttpScore(server.url, token_variable="MY_TOKEN")
    assert b"secret-1" not in pickle.dumps(score)
    score = pickle.loads(pickle.dumps(score))
    server.script = [lambda handler: handler.answer(401, {"detail": "the token is wrong"})]
    with pytest.raises(HttpRewardError, match="does not accept the token in MY_TOKEN") as error:
        score(*pictures(1))
    assert "secret-1" not in str(error.value)
    assert server.asked[0][2]["Authorization"] == "Bearer secret-1"


def test_one_of_several_rewards_must_be_named_in_the_address_or_beside_it(server: Server) -> None:
    server.rewards = ["clip", "red"]
    assert HttpScore(f"{server.url}#red").name == "red"
    assert HttpScore(server.url, reward="clip").name == "clip"
    for wrong, words in (
        (server.url, "has several rewards; name one of clip, red"),
        (f"{server.url}#x", "no reward 'x'"),
    ):
        with pytest.raises(HttpRewardError, match=words):
            HttpScore(wrong)
    for wrong in ("clip", "ftp://host", "http://"):
        with pytest.raises(HttpRewardError, match="is no address of a reward server"):
            HttpScore(wrong)
