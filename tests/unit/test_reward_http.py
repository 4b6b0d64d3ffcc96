"""The HTTP interface without Ray and without sockets: the real application, called in the process."""

import asyncio
import io
import json
import re
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from reward_servers.gateway_options import GatewayOptions, Limits, RouterOptions
from reward_servers.http_api import build_api
from reward_servers.images import Refused, png, read_images
from sharpening.rewards.base import Scores, all_failed

RNG = np.random.default_rng(0)
LIMITS = Limits(max_items=8, max_image_pixels=100_000, max_pixels=200_000, max_prompt_characters=50)
NAMES = ("red", "green", "down", "slow", "strict")
TOKEN = "correct horse battery staple"


@dataclass(frozen=True)
class State:
    name: str
    replicas: int


class Local:
    """Rewards in this process: mean of a colour channel over thirds, so that float32s are not round."""

    def __init__(self) -> None:
        self.names = list(NAMES)
        self.calls: list[tuple[tuple[int, ...], list[str]]] = []

    async def score(
        self, images: np.ndarray, prompts: Sequence[str], rewards: Sequence[str], deadline_s: float, wait: bool
    ) -> dict[str, Scores]:
        assert images.dtype == np.uint8
        assert not wait
        self.calls.append((images.shape, list(prompts)))
        return {name: self._one(name, images) for name in rewards}

    def _one(self, name: str, images: np.ndarray) -> Scores:
        if name == "down":
            return all_failed(len(images), "unavailable")
        if name == "slow":
            return all_failed(len(images), "timeout")
        if name == "strict":
            return all_failed(len(images), "rejected")
        return Scores(brightness(images, self.names.index(name)), {})

    async def states(self) -> list[State]:
        return [State(name, int(name not in ("down", "slow"))) for name in self.names]


def brightness(images: np.ndarray, channel: int) -> np.ndarray:
    return (images[..., channel].mean(axis=(1, 2)) / 3).astype(np.float32)


def call(
    method: str, path: str, rewards: Local | None = None, options: GatewayOptions | None = None,
    token: str | None = None, **request: Any,
) -> httpx.Response:  # fmt: skip
    options = options or GatewayOptions(applications={name: name for name in NAMES}, limits=LIMITS)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(build_api(rewards or Local(), options, token))
        async with httpx.AsyncClient(transport=transport, base_url="http://rewards") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def picture(height: int = 5, width: int = 7) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


def items(*files: bytes, prompt: str = "a") -> list[dict[str, str]]:
    return [{"image": encoded(data), "prompt": f"{prompt}"} for data in files]


def score(*files: bytes, **request: Any) -> httpx.Response:
    rewards = request.pop("rewards", ["red"])
    return call("POST", "/v1/score", json={"items": items(*files), "rewards": rewards}, **request)


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# -- answers -------------------------------------------------------------------------------------------------------


def test_scores_of_json_and_form_are_those_of_the_scorer_bit_for_bit_in_the_order_of_the_request() -> None:
    images = [picture(), picture(4, 4), picture(), picture(4, 4), picture()]
    files = [png(image) for image in images]
    rewards = Local()
    in_json = call(
        "POST", "/v1/score", rewards, json={"items": items(*files), "rewards": ["green", "red"]}
    )  # fmt: skip
    in_form = call(
        "POST", "/v1/score", files=[("image", ("x.png", data, "image/png")) for data in files],
        data={"prompt": ["a", "b", "c", "d", "e"], "rewards": ["green", "red"]},
    )  # fmt: skip
    for response in (in_json, in_form):
        results = response.json()["results"]
        assert list(results) == ["green", "red"]
        for name, channel in (("red", 0), ("green", 1)):
            got = np.array([result["score"] for result in results[name]], np.float64)
            wanted = np.concatenate([brightness(image[None], channel) for image in images])
            assert (got == wanted.astype(np.float64)).all()
            assert {result["failure"] for result in results[name]} == {None}
    assert sorted(rewards.calls) == [((2, 4, 4, 3), ["a"] * 2), ((3, 5, 7, 3), ["a"] * 3)]  # one call an image size


def test_jpeg_grey_and_palettes_are_scored_as_pillow_reads_them() -> None:
    image = picture(16, 16)
    grey, palette = Image.fromarray(image).convert("L"), Image.fromarray(image).quantize(8)
    files = [jpeg(image), saved(grey), saved(palette), saved(Image.fromarray(image).convert("RGBA"))]
    read = read_images(files, LIMITS)
    assert (read[0] == np.asarray(Image.open(io.BytesIO(files[0])))).all()
    assert (read[1] == np.asarray(grey)[..., None]).all()
    assert (read[2] == np.asarray(palette.convert("RGB"))).all()
    assert (read[3] == image).all()


def test_every_image_has_a_score_or_a_reason_and_a_reward_that_is_down_spoils_no_other() -> None:
    results = score(png(picture()), rewards=["down", "red", "slow", "strict"]).json()["results"]
    assert [results[name][0]["failure"] for name in results] == ["unavailable", None, "timeout", "rejected"]
    assert [results[name][0]["score"] is None for name in results] == [True, False, True, True]


@pytest.mark.parametrize(("rewards", "status"), [(["down"], 503), (["slow"], 504), (["slow", "down"], 503)])
def test_without_any_answer_the_request_may_be_sent_again(rewards: list[str], status: int) -> None:
    response = score(png(picture()), rewards=rewards)
    assert response.status_code == status
    assert response.headers["retry-after"] == "5"
    assert all(name in response.json()["detail"] for name in rewards)


def test_what_was_refused_as_a_whole_is_an_answer() -> None:
    assert score(png(picture()), rewards=["strict"]).status_code == 200


def test_rewards_limits_and_health_are_told() -> None:
    told = call("GET", "/v1/rewards").json()
    assert told["rewards"][0] == {"name": "red", "available": True, "replicas": 1}
    assert told["rewards"][2] == {"name": "down", "available": False, "replicas": 0}
    assert told["limits"] == LIMITS.model_dump()
    assert call("GET", "/healthz").json() == {"status": "degraded"}


# -- what is refused -----------------------------------------------------------------------------------------------

GOOD = png(picture())
WRONG_FILES = {
    "empty": (b"", 422, "fewer|at least 4 characters"),
    "text": (b"no picture at all", 422, "image 1 is neither a PNG nor a JPEG"),
    "gif": (saved(Image.new("RGB", (4, 4)), "GIF"), 422, "image 1 is neither a PNG nor a JPEG"),
    "truncated PNG": (png(picture(32, 32))[:-400], 422, "image 1 is damaged or cut off"),
    "truncated JPEG": (jpeg(picture(64, 64))[:-900], 422, "image 1 is damaged or cut off"),
    "bomb": (bomb(60_000, 60_000), 413, "image 1 has too many pixels; 100,000 are allowed"),
    "large": (bomb(400, 300), 413, "image 1 has 400 × 300 pixels; 100,000 are allowed"),
    "16 bit": (saved(Image.new("I;16", (4, 4))), 422, "image 1 is of the kind I;16"),
    "transparent": (saved(Image.new("RGBA", (4, 4), (1, 2, 3, 100))), 422, "image 1 is transparent in places"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_image_is_one_sentence(name: str) -> None:
    data, status, words = WRONG_FILES[name]
    response = score(GOOD, data)
    assert response.status_code == status
    assert list(response.json()) == ["detail"]
    assert re.search(words, response.json()["detail"]), response.json()


def test_an_empty_file_of_a_form_is_one_sentence() -> None:
    response = call("POST", "/v1/score", files=[("image", ("x.png", b"", "image/png"))], data={"prompt": ["a"]})
    assert (response.status_code, response.json()["detail"]) == (422, "image 0 is empty; send a PNG or JPEG file")


def body(**changes: Any) -> bytes:
    return json.dumps({"items": items(GOOD), "rewards": ["red"], **changes}).encode()


WRONG_BODIES = {
    "no body": (b"", 400, "Invalid JSON"),
    "no JSON": (b"{items", 400, "Invalid JSON"),
    "not UTF-8": (body().replace(b'"a"', b'"\xff\xfe"'), 400, "Invalid JSON: invalid unicode"),
    "half a surrogate": (body().replace(b'"a"', b'"\\ud800"'), 400, "Invalid JSON"),
    "list": (b"[1, 2]", 422, "object"),
    "number for an image": (body(items=[{"image": 5, "prompt": "a"}]), 422, r"items\[0\].image: .*string"),
    "no prompt": (body(items=[{"image": encoded(GOOD)}]), 422, r"items\[0\].prompt: Field required"),
    "no base64": (body(items=[{"image": "?" * 8, "prompt": "a"}]), 422, "image 0 is not base64"),
    "no items": (body(items=[]), 422, "items: .*at least 1"),
    "10,000 items": (body(items=items(GOOD) * 10_000), 422, "items: .*at most 8"),
    "long prompt": (body(items=items(GOOD, prompt="x" * 10**6)), 422, r"items\[0\].prompt: .*at most 50 characters"),
    "unknown reward": (body(rewards=["blue"]), 422, r"rewards\[0\]: .*'red', 'green'"),
    "unknown field": (body(model="mine"), 422, "model: Extra inputs are not permitted"),
    "many pixels": (body(items=items(*[png(np.zeros((300, 300, 3), np.uint8))] * 3)), 413, "200,000 pixels together"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_BODIES)
def test_wrong_body_is_one_sentence(name: str) -> None:
    content, status, words = WRONG_BODIES[name]
    response = call("POST", "/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert re.search(words, response.json()["detail"]), response.json()
    assert len(response.text) < 400  # what was sent is not repeated


FORM_X = {"Content-Type": "multipart/form-data; boundary=x"}
CUT_FORM = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x\r\nContent-Disposition: form-da'
FORM_FILE = ("image", ("x.png", GOOD, "image/png"))


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "application/json or multipart/form-data"),
        ({"content": b"x"}, 415, "Content-Type"),
        ({"files": [FORM_FILE] * 2, "data": {"prompt": ["a"]}}, 422, "2 files named image and 1 fields named prompt"),
        ({"files": [FORM_FILE], "data": {"prompt": ["x" * 51]}}, 422, "prompt 0 has 51 characters; 50 are allowed"),
        ({"files": [FORM_FILE], "data": {"prompt": ["a"], "rewards": ["blue"]}}, 422, "no reward 'blue'"),
        ({"files": [FORM_FILE], "data": {"prompt": ["a"], "seed": ["1"]}}, 422, "a field 'seed'"),
        ({"files": [FORM_FILE] * 9, "data": {"prompt": ["a"] * 9}}, 422, "more than 8 fields named prompt"),
        ({"files": [FORM_FILE, ("prompt", (None, b"\xff"))]}, 400, "prompt 0 is not UTF-8"),
        ({"content": CUT_FORM, "headers": FORM_X}, 400, "cut off"),
        ({"content": b"--x\r\n\r\n1\r\n--x--", "headers": FORM_X}, 400, "mal"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "cut off or malformed"),
    ],
)  # fmt: skip
def test_wrong_form_is_one_sentence(request_: dict[str, Any], status: int, words: str) -> None:
    response = call("POST", "/v1/score", **request_)
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]


def test_bodies_are_not_read_beyond_the_limits() -> None:
    options = GatewayOptions(limits=Limits(max_body_bytes=1000), max_bytes_in_flight=500)
    read = [0]

    async def stream() -> Any:
        for _ in range(1000):
            read[0] += 100
            yield b"x" * 100

    headers = {"Content-Type": "application/json"}
    declared = call("POST", "/v1/score", options=options, content=b"x" * 1001, headers=headers)
    assert (declared.status_code, declared.json()["detail"]) == (413, "the body is too large; 1,000 bytes are allowed")
    full = call("POST", "/v1/score", options=options, content=stream(), headers=headers)
    assert full.status_code == 503
    assert full.headers["retry-after"]
    assert read[0] < 1000
    chunked = call(
        "POST", "/v1/score", options=options.model_copy(update={"max_bytes_in_flight": 10**6}), content=stream(),
        headers=headers,
    )  # fmt: skip
    assert chunked.status_code == 413
    assert read[0] < 3000


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:9]}", "Bearer é"]
)
def test_without_the_token_nothing_is_told(header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in (("GET", "/v1/rewards"), ("GET", "/openapi.json"), ("POST", "/v1/score")):
        response = call(method, path, token=TOKEN, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "token" in response.json()["detail"]
    assert call("GET", "/healthz", token=TOKEN, headers=headers).status_code == 200


def test_with_the_token_everything_is_told_and_the_schema_says_that_it_is_needed() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert call("GET", "/v1/rewards", token=TOKEN, headers=headers).status_code == 200
    schema = call("GET", "/openapi.json", token=TOKEN, headers=headers).json()
    assert schema["paths"]["/v1/score"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "401" in schema["paths"]["/v1/score"]["post"]["responses"]
    assert TOKEN not in json.dumps(schema)


def test_the_schema_example_is_a_request_that_is_answered() -> None:
    schema = call("GET", "/openapi.json").json()["components"]["schemas"]
    (example,) = schema["ScoreRequest"]["examples"]
    results = call("POST", "/v1/score", json=example).json()["results"]
    red = np.zeros((1, 64, 64, 3), np.uint8) + np.array([220, 40, 40], np.uint8)
    assert results["red"][0]["score"] == brightness(red, 0)[0]


# -- options -------------------------------------------------------------------------------------------------------


def test_gateway_options_are_read_from_text() -> None:
    options = GatewayOptions.model_validate(
        {"rewards": "clip,mine=tests.small_clip:BlackIsNotFinite", "applications": "far=reward-far,reward-near"}
    )
    assert options.reward_names == ["clip", "mine", "far", "reward-near"]
    assert options.rewards["mine"].reward == "tests.small_clip:BlackIsNotFinite"
    assert options.rewards["clip"].name == "clip"
    assert options.applications == {"far": "reward-far", "reward-near": "reward-near"}
    nested = GatewayOptions.model_validate({"rewards": {"clip": {"num_threads": 2}, "other": {"reward": "clip"}}})
    assert [reward.reward for reward in nested.rewards.values()] == ["clip", "clip"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rewards": "clip,clip"}, "'clip' is named twice"),
        ({"rewards": "clip", "applications": "clip"}, "'clip' stands under rewards and under applications"),
        ({"rewards": {"a/b": {"reward": "clip"}}}, "letters, digits"),
        ({"reward": "clip"}, "reward"),
    ],
)
def test_wrong_gateway_options_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RouterOptions.model_validate(wrong)


def test_a_token_that_is_set_where_the_gateway_is_built_is_required_where_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REWARD_SERVER_TOKEN", raising=False)
    assert GatewayOptions().settled().require_token is False
    monkeypatch.setenv("REWARD_SERVER_TOKEN", TOKEN)
    settled = GatewayOptions().settled()
    assert settled.require_token is True
    assert settled.reward_names == ["clip"]
    assert TOKEN not in settled.model_dump_json()


def test_pixels_of_all_images_are_added_up_before_any_is_decoded() -> None:
    with pytest.raises(Refused, match="200,000 pixels together"):
        read_images([bomb(300, 300)] * 3, LIMITS)  # none of them could be decoded
