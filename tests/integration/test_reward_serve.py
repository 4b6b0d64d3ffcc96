"""Rewards behind a real Ray Serve, by handle and over HTTP: one replica of each serves all tests, and is killed and
deleted in the last ones."""

import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import schemathesis
import torch
import yaml
from hypothesis import strategies
from PIL import Image

from reward_servers.http_client import HttpScore
from reward_servers.images import png
from sharpening.checks import ModelFolderError
from sharpening.rewards import RewardUnavailable, ScoreFn, Scores
from sharpening.rewards.base import RewardMisconfigured
from sharpening.rewards.clip import ClipScorer
from tests.listening import exposed, free_port, listening, silent
from tests.openai_server import OpenAIServer, Reply, openai_server, refusal, score_of
from tests.small_clip import make_clip_folder

ROOT = Path(__file__).resolve().parents[2]
SCORER, RED = "tests.small_clip:BlackIsNotFinite", "tests.served_rewards:Red"
PROMPTS = ["a red circle", "a blue square left of a green cross", "a dotted triangle above a cross"]
# A local Ray asks for a token and would write one into the home.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
REWARD_TOKEN = secrets.token_hex(16)
HEADERS = {"Authorization": f"Bearer {REWARD_TOKEN}"}


PORT = free_port()

pytestmark = pytest.mark.own_ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_folder(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[OpenAIServer]:
    """A multimodal model's endpoint."""
    with openai_server() as server:
        yield server


@pytest.fixture(scope="module")
def app(folder: Path, endpoint: OpenAIServer) -> Iterator[str]:
    """Name of a running application with one replica on one thread; replicas find the endpoint in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("OPENAI_BASE_URL", endpoint.url)
        patch.setenv("OPENAI_API_KEY", "sk-test")
        if "RAY_AUTH_MODE" not in os.environ:
            for name, value in TOKEN.items():
                patch.setenv(name, value)
        patch.setenv("REWARD_SERVER_TOKEN", REWARD_TOKEN)
        import ray

        from reward_servers.applications import start_gateway, start_reward_app, stop_reward_app
        from reward_servers.gateway_options import GatewayOptions
        from reward_servers.options import RewardAppOptions

        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 500},
        )  # fmt: skip
        try:
            gateway = GatewayOptions(
                name="gateway-test",
                rewards={"red": RewardAppOptions(name="red", reward=RED, num_cpus=0.5)},
                applications={"clip": "reward-test", "gone": "reward-gone"},
            )  # fmt: skip
            start_gateway(gateway, port=PORT)
            start_reward_app(app_options(folder))
            yield "reward-test"
            stop_reward_app("reward-test")
        finally:
            ray.serve.shutdown()
            ray.shutdown()


def app_options(folder: Path) -> Any:
    from reward_servers.options import RewardAppOptions

    return RewardAppOptions(name="reward-test", reward=SCORER, model=str(folder), num_threads=1, num_cpus=0.5)


@pytest.fixture(scope="module")
def url(app: str) -> str:
    """Address of the gateway in front of the application, of a reward of its own, and of one that is not there."""
    return f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def expected(folder: Path) -> Iterator[ClipScorer]:
    """The same model in this process, on as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ClipScorer(str(folder))
    torch.set_num_threads(threads)


def make_requests() -> list[tuple[np.ndarray, list[str]]]:
    """Requests of 1 to 40 images, two image sizes."""
    rng = np.random.default_rng(0)
    requests = []
    for number, count in enumerate([1, 3, 32, 40, 7, 1, 16, 33, 2, 5, 8, 1]):
        size = (64, 64) if number % 4 else (48, 56)
        images = rng.integers(0, 256, (count, *size, 3), np.uint8)
        requests.append((images, [PROMPTS[(number + i) % 3] for i in range(count)]))
    return requests


def same(served: Scores, local: Scores) -> bool:
    return served.values.tobytes() == local.values.tobytes() and served.failures == local.failures


def statistics(app: str) -> dict[str, Any]:
    from ray import serve

    return serve.get_app_handle(app).statistics.remote().result(timeout_s=60)


def test_scores_equal_those_in_process_bit_for_bit_under_concurrency(app: str, expected: ClipScorer) -> None:
    from reward_servers.client import ServeScore

    requests = make_requests()
    local = [expected.score(*request) for request in requests]
    before = statistics(app)
    score = ServeScore(app, deadline_s=120)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            for served, wanted in zip(threads.map(lambda request: score(*request), requests), local, strict=True):
                assert same(served, wanted)
    after = statistics(app)
    assert after["requests"] - before["requests"] == 3 * len(requests)
    assert after["batches"] - before["batches"] < 3 * len(requests)  # some were scored together


def test_score_from_inside_an_actor(app: str, expected: ClipScorer) -> None:
    import ray

    from reward_servers.client import ServeScore

    @ray.remote(num_cpus=0)
    class Caller:
        def score(self, function: ServeScore, images: np.ndarray, prompts: list[str]) -> Scores:
            return function(images, prompts)

    images, prompts = make_requests()[3]
    served = ray.get(Caller.remote().score.remote(ServeScore(app), images, prompts))
    assert same(served, expected.score(images, prompts))


def test_not_finite_and_rejected_images_are_failures_with_their_reason(app: str, expected: ClipScorer) -> None:
    from reward_servers.client import ServeScore

    score = ServeScore(app, deadline_s=60)
    images, prompts = make_requests()[4]
    local = expected.score(images, prompts)
    images = images.copy()
    images[[2, 5]] = 0
    served = score(images, prompts)
    assert served.failures == {2: "not finite", 5: "not finite"}
    assert np.isnan(served.values[[2, 5]]).all()
    keep = [0, 1, 3, 4, 6]
    assert served.values[keep].tobytes() == local.values[keep].tobytes()
    started = time.monotonic()
    assert score(images.astype(np.float32), prompts).failures == dict.fromkeys(range(7), "rejected")
    assert score(images, prompts[:3]).failures == dict.fromkeys(range(7), "rejected")
    assert time.monotonic() - started < 30  # not retried


def test_the_grader_behind_serve(app: str, endpoint: OpenAIServer) -> None:
    from reward_servers.applications import start_reward_app, stop_reward_app
    from reward_servers.client import ServeScore
    from reward_servers.options import RewardAppOptions

    start_reward_app(RewardAppOptions(name="grader-test", reward="grader", model="judge", num_cpus=0.1))
    try:
        score = ServeScore("grader-test", deadline_s=120)
        endpoint.script = {"refused": [refusal(400, "no")], "babble": [Reply("a lovely picture")]}
        images = np.random.default_rng(1).integers(0, 256, (6, 32, 24, 3), np.uint8)
        prompts = ["a", "refused", "b", "babble", "c", "c"]
        for _ in range(2):
            scores = score(images, prompts)
            assert scores.failures == {1: "rejected", 3: "unreadable answer"}
            kept = [0, 2, 4, 5]
            assert scores.values[kept] == pytest.approx([score_of(images[i], prompts[i]) for i in kept])
        counted = statistics("grader-test")
        assert counted["images"] == counted["grader_images"] == 12
        assert (counted["grader_cached"], counted["grader_failures"]) == (4, 4)
        assert counted["grader_requests"] == len(endpoint.received)
        endpoint.always = refusal(401, "expired")
        with pytest.raises(RewardMisconfigured, match="^the grader at [^\n]* does not accept the API key"):
            score(images[:1], ["d"])
    finally:
        stop_reward_app("grader-test")


def red(images: np.ndarray) -> np.ndarray:
    return (images[..., 0].mean(axis=(1, 2)) / 3).astype(np.float32)


def test_several_rewards_answer_behind_one_handle(app: str, url: str, expected: ClipScorer) -> None:
    from reward_servers.client import ServeRewards

    images, prompts = make_requests()[3]
    answers = ServeRewards("gateway-test", deadline_s=60)(images, prompts, ["red", "clip"])
    assert list(answers) == ["red", "clip"]
    assert same(answers["clip"], expected.score(images, prompts))
    assert same(answers["red"], Scores(red(images)))
    wrong = ServeRewards("gateway-test", deadline_s=60)(images.astype(np.float32), prompts, ["red", "clip"])
    assert {reason for scores in wrong.values() for reason in scores.failures.values()} == {"rejected"}
    with pytest.raises(ValueError, match="no reward 'blue'; there are red, clip, gone"):
        ServeRewards("gateway-test")(images, prompts, ["blue"])


def test_the_router_gives_up_a_reward_that_stays_away_and_keeps_the_others(app: str, url: str) -> None:
    from ray import serve

    images, prompts = make_requests()[4]
    handle = serve.get_app_handle("gateway-test")
    answers = handle.score.remote(images, prompts, ["gone", "red"], deadline_s=1.0).result(timeout_s=60)
    assert answers["gone"].failures == dict.fromkeys(range(7), "unavailable")
    assert same(answers["red"], Scores(red(images)))


def test_scores_over_http_equal_those_in_process_bit_for_bit(app: str, url: str, expected: ClipScorer) -> None:
    requests = make_requests()[:6]
    for batch_size in (256, 9):
        score = HttpScore(f"{url}#clip", batch_size=batch_size, deadline_s=120)
        with ThreadPoolExecutor(3) as threads:
            served = [threads.submit(score, *request) for request in requests]
            for answer, request in zip(served, requests, strict=True):
                assert same(answer.result(), expected.score(*request))
    images, prompts = make_requests()[4]
    images = images.copy()
    images[2] = 0
    assert score(images, prompts).failures == {2: "not finite"}
    files = [("image", ("x.jpg", jpeg(image), "image/jpeg")) for image in images]
    form = {"prompt": prompts, "rewards": ["clip", "red"]}
    results = httpx.post(f"{url}/v1/score", files=files, data=form, headers=HEADERS, timeout=60).json()["results"]
    read = np.stack([np.asarray(Image.open(io.BytesIO(jpeg(image)))) for image in images])
    local = expected.score(read, prompts)
    assert [r["score"] for r in results["clip"]] == [None if i == 2 else float(v) for i, v in enumerate(local.values)]
    assert [r["score"] for r in results["red"]] == red(read).astype(float).tolist()


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def test_a_reward_that_is_down_is_503_at_once_and_spoils_no_other(app: str, url: str) -> None:
    items = [{"image": b64encode(png(np.zeros((4, 4, 3), np.uint8))).decode(), "prompt": "a"}]
    down = httpx.post(f"{url}/v1/score", json={"items": items, "rewards": ["gone"]}, headers=HEADERS, timeout=60)
    assert (down.status_code, down.headers["retry-after"]) == (503, "5")
    assert down.json()["detail"] == "no replica of gone is there; come back later"
    every = httpx.post(f"{url}/v1/score", json={"items": items}, headers=HEADERS, timeout=60)
    assert {name: result[0]["failure"] for name, result in every.json()["results"].items()} == {
        "red": None, "clip": "not finite", "gone": "unavailable"
    }  # fmt: skip
    told = httpx.get(f"{url}/v1/rewards", headers=HEADERS, timeout=60).json()["rewards"]
    assert {entry["name"]: entry["replicas"] for entry in told} == {"red": 1, "clip": 1, "gone": 0}
    assert httpx.get(f"{url}/healthz", timeout=60).json() == {"status": "degraded"}
    with pytest.raises(RewardUnavailable, match="503 no replica of gone is there"):
        HttpScore(f"{url}#gone", deadline_s=1)(np.zeros((1, 4, 4, 3), np.uint8), ["a"])


def test_bad_input_over_http_is_refused_and_the_server_stays_up(app: str, url: str) -> None:
    good = b64encode(png(np.full((4, 4, 3), 9, np.uint8))).decode()
    statuses = []
    with httpx.Client(base_url=url, headers=HEADERS, timeout=60) as client:
        for body, headers in (
            (json.dumps({"items": [{"image": good, "prompt": "a"}] * 10_000}).encode(), {}),
            (json.dumps({"items": [{"image": good, "prompt": "a" * 10**6}]}).encode(), {}),
            (json.dumps({"items": [{"image": good[: len(good) // 2 // 4 * 4], "prompt": "a"}]}).encode(), {}),
            (b"", {}),
            (b'{"items": "\xff"}', {}),
            (b"x" * (65 * 2**20), {}),
            (b"{}", {"Authorization": "Bearer wrong"}),
        ):
            headers = {"Content-Type": "application/json", **headers}
            response = client.post("/v1/score", content=body, headers=headers)
            statuses.append(response.status_code)
            assert list(response.json()) == ["detail"]
        assert statuses == [422, 422, 422, 400, 400, 413, 401]
        answer = client.post("/v1/score", json={"items": [{"image": good, "prompt": "a"}], "rewards": ["red"]})
        assert answer.json() == {"results": {"red": [{"score": 3.0, "failure": None}]}}


def test_the_server_keeps_to_its_schema(url: str) -> None:
    pictures = [b64encode(png(np.full((4, 4, 3), value, np.uint8))).decode() for value in (7, 200)]
    schemathesis.openapi.format("byte", strategies.sampled_from(pictures))
    answers = Counter()
    for operation in schemathesis.openapi.from_url(f"{url}/openapi.json", headers=HEADERS).get_all_operations():
        posts = operation.ok().method == "post"
        for mode in schemathesis.GenerationMode if posts else [schemathesis.GenerationMode.POSITIVE]:

            @hypothesis.settings(
                max_examples=48 if posts else 2, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(case=operation.ok().as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                response = case.call(headers=HEADERS, timeout=60)
                case.validate_response(response, headers=HEADERS, excluded_checks=not_meant_for(case, response))
                answers[case.media_type, case.meta.generation.mode.name, response.status_code] += 1

            check()
    assert answers["application/json", "POSITIVE", 200] > 2
    assert answers["application/json", "NEGATIVE", 422] > 2
    assert answers["multipart/form-data", "NEGATIVE", 422] > 2


def not_meant_for(case: schemathesis.Case, response: schemathesis.Response) -> list[Any]:
    """Checks that would mistake what is right for wrong."""
    names = []
    if case.media_type == "multipart/form-data":  # a schema cannot say: as many files as prompts, and PNG
        names.append("positive_data_acceptance")
    if "no replica of gone is there" in response.text:  # as the schema says it may
        names.append("not_a_server_error")
    return [schemathesis.checks.CHECKS.get_one(name) for name in names]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_documented_curl_commands_work(url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    commands = [block.replace("http://127.0.0.1:8000", url) for block in re.findall(r"```bash\n(.*?)```", page, re.S)]
    assert len(commands) == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "REWARD_SERVER_TOKEN": REWARD_TOKEN, "PATH": path}
    outputs = [
        json.loads(subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=600
        ).stdout)
        for command in commands
    ]  # fmt: skip
    assert outputs[0] == {"status": "degraded"}
    assert outputs[1] == outputs[2]
    assert isinstance(outputs[1]["results"]["clip"][0]["score"], float)
    assert [entry["name"] for entry in outputs[3]["rewards"]] == ["red", "clip", "gone"]


def test_documented_clients_work(app: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of docs/serving.md, with the names of what is served here."""
    import ray

    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    over_http, by_handle = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.setattr(ray, "init", lambda address: None)  # this process is connected
    names: dict[str, Any] = {}
    exec(over_http.replace("http://127.0.0.1:8000", url), names)
    by_handle = by_handle.replace('"rewards"', '"gateway-test"').replace('"verifier"', '"red"')
    exec(by_handle.replace('"reward"', f'"{app}"'), names)
    assert same(names["clip"], names["scores"])
    assert same(names["both"]["clip"], names["scores"])
    assert same(names["both"]["red"], Scores(red(names["images"])))


def test_other_weights_take_over_between_batches_and_bad_ones_are_refused(
    app: str, folder: Path, expected: ClipScorer, tmp_path: Path
) -> None:
    from ray import serve

    from reward_servers.client import ServeScore

    other = ClipScorer(str(make_clip_folder(tmp_path / "other", seed=1)))
    images, prompts = make_requests()[2]
    old, new = expected.score(images, prompts), other.score(images, prompts)
    assert not same(old, new)
    handle, score, pid = serve.get_app_handle(app), ServeScore(app, deadline_s=60), statistics(app)["pid"]

    def reconfigure(**user_config: Any) -> dict[str, Any]:
        """Serve calls this method of every replica when a deployment's `user_config` changes."""
        with ThreadPoolExecutor(1) as threads:
            change = threads.submit(lambda: handle.reconfigure.remote(user_config).result(timeout_s=120))
            while not change.done():  # under load
                served = score(images, prompts)
                assert same(served, old) or same(served, new)
            change.result()
        return statistics(app)

    told = reconfigure(model=str(tmp_path / "other"), max_batch_images=8)
    assert told["refused"] is None
    assert told["weights"]["model"] == str(tmp_path / "other")
    assert same(score(images, prompts), new)
    for wrong, words in (
        ({"model": str(tmp_path)}, "has no open_clip_config"),
        ({"reward": "x"}, "cannot change 'reward'"),
    ):
        told = reconfigure(**wrong)
        assert words in told["refused"]
        assert told["weights"]["model"] == str(tmp_path / "other")
        assert same(score(images, prompts), new)
    told = reconfigure()
    assert (told["refused"], told["weights"]["model"], told["pid"]) == (None, str(folder), pid)
    assert same(score(images, prompts), old)


def test_metrics_reach_rays_prometheus_endpoint(app: str, url: str) -> None:
    import ray

    images, prompts = make_requests()[4]
    images = images.copy()
    images[3] = 0
    items = [{"image": b64encode(png(image)).decode(), "prompt": "a"} for image in images]
    assert httpx.post(f"{url}/v1/score", json={"items": items}, headers=HEADERS, timeout=60).status_code == 200
    endpoint = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    mine = f'reward="{SCORER}"'
    missing = {
        rf"ray_sharpening_reward_{name}{{[^}}]*{tag}[^}}]*}} [0-9.e+-]+"
        for name, tag in (
            ("requests_total", 'application="reward-test"'), ("images_total", mine),
            ("batch_images_bucket", 'le="64.0"'), ("batch_images_count", 'deployment="BlackIsNotFiniteReward"'),
            ("latency_s_sum", mine),
            ("score_mean", mine), ("score_spread", mine), ("failures_total", 'kind="not finite"'),
            ("failures_total", 'kind="unavailable"'),
        )
    }  # fmt: skip
    deadline = time.monotonic() + 600
    while missing:  # a gauge is shown for some time after it was set
        text = httpx.get(endpoint, timeout=30).text
        missing = {pattern for pattern in missing if not re.search(pattern, text)}
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)
    told = statistics(app)
    shown = re.search(r'ray_sharpening_reward_images_total{[^}]*application="reward-test"[^}]*} ([0-9.e+]+)', text)
    assert shown
    assert 0 < float(shown[1]) <= told["images"]
    assert sum(size * count for size, count in told["batch_images"].items()) == told["images"]


def clients(app: str, url: str) -> list[ScoreFn]:
    """The three ways to the application, each with its own retries."""
    from reward_servers.client import ServeRewards, ServeScore

    several = ServeRewards("gateway-test", deadline_s=200)
    return [
        ServeScore(app, request_timeout_s=60, deadline_s=200),
        lambda images, prompts: several(images, prompts, ["clip"])["clip"],
        HttpScore(f"{url}#clip", deadline_s=200),
    ]


def test_killed_replica_loses_no_request(app: str, url: str, expected: ClipScorer) -> None:
    requests = make_requests()
    local = [expected.score(*request) for request in requests]
    pid = statistics(app)["pid"]
    ways = clients(app, url)
    answered = [0]
    killed = threading.Event()

    def kill() -> None:
        while answered[0] < 10:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    def ask(number: int) -> bool:
        served = ways[number % 3](*requests[number % len(requests)])
        answered[0] += 1
        return same(served, local[number % len(requests)])

    threading.Thread(target=kill, daemon=True).start()
    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(60)))
    assert killed.is_set()
    assert statistics(app)["pid"] != pid


def test_an_application_that_is_away_for_a_while_pauses_its_callers(
    app: str, url: str, folder: Path, expected: ClipScorer
) -> None:
    from reward_servers.applications import start_reward_app, stop_reward_app

    images, prompts = make_requests()[3]
    ways = clients(app, url)
    stop_reward_app(app)
    with ThreadPoolExecutor(len(ways)) as threads:
        calls = [threads.submit(way, images, prompts) for way in ways]
        time.sleep(3)
        assert not any(call.done() for call in calls)
        start_reward_app(app_options(folder))
        for call in calls:
            assert same(call.result(timeout=200), expected.score(images, prompts))


def test_deleted_application_is_unavailable_after_the_deadline(app: str) -> None:
    from ray import serve

    from reward_servers.applications import stop_reward_app
    from reward_servers.client import ServeScore

    handle = serve.get_app_handle(app)
    stop_reward_app(app)
    stop_reward_app(app)  # what is gone is not missed
    for target in (app, handle):
        started = time.monotonic()
        with pytest.raises(RewardUnavailable, match=f"^the reward '{app}' gave no answer for 2 s [^\n]*$"):
            ServeScore(target, request_timeout_s=1, deadline_s=2)(np.zeros((1, 64, 64, 3), np.uint8), ["a"])
        assert 1.9 < time.monotonic() - started < 20


def test_application_that_cannot_start_is_removed_and_says_why(app: str, tmp_path: Path) -> None:
    from ray import serve

    from reward_servers.applications import start_reward_app
    from reward_servers.options import RewardAppOptions

    with pytest.raises(ModelFolderError, match="has no open_clip_config.json"):
        start_reward_app(RewardAppOptions(name="reward-broken", model=str(tmp_path)))
    with pytest.raises(
        RewardUnavailable, match="'reward-broken' did not start .*'tests.absent:Scorer' cannot be imported"
    ):
        start_reward_app(RewardAppOptions(name="reward-broken", reward="tests.absent:Scorer"))
    assert "reward-broken" not in serve.status().applications


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", *arguments]


def test_serve_build_writes_the_bound_applications(tmp_path: Path) -> None:
    output = tmp_path / "serve.yaml"
    paths = ["reward_servers.app:app", "reward_servers.gateway:app"]
    subprocess.run(serve_command("build", *paths, "-o", str(output)), cwd=ROOT, check=True)
    alone, gateway = yaml.safe_load(output.read_text())["applications"]
    assert [alone["import_path"], gateway["import_path"]] == paths
    (deployment,) = alone["deployments"]
    assert deployment["name"] == "ClipReward"
    assert deployment["max_ongoing_requests"] == 512
    assert {deployment["name"] for deployment in gateway["deployments"]} == {"ClipReward", "Gateway"}


SCORE_FROM_OUTSIDE = """
import sys
import numpy as np, ray
from reward_servers.client import ServeScore
ray.init(address=sys.argv[1], log_to_driver=False)
print(ServeScore("reward", deadline_s=100)(np.full((1, 64, 64, 3), 128, np.uint8), ["a red circle"]).values[0])
"""


def test_serve_run_with_the_shipped_configuration_listens_on_loopback_only(folder: Path) -> None:
    config = yaml.safe_load((ROOT / "reward_servers" / "serve.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"
    port = config["http_options"]["port"] = free_port()
    clip, verifier, gateway = config["applications"]
    clip["args"] |= {"model": str(folder), "num_cpus": 0.5}
    assert gateway["args"]["applications"] == {"clip": clip["name"], "verifier": verifier["name"]}
    # Short: Ray's sockets lie under it. A folder and a local cluster of its own keep it apart from other clusters.
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        (Path(temporary) / "serve.yaml").write_text(yaml.safe_dump(config))
        environment = {**os.environ, **TOKEN, "RAY_TMPDIR": temporary, "PYTHONUNBUFFERED": "1"}
        environment |= {"REWARD_SERVER_TOKEN": REWARD_TOKEN}
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as docs/serving.md has it
        environment.pop("RAY_ADDRESS", None)
        command = serve_command("run", "--address", "local", str(Path(temporary) / "serve.yaml"))
        log = Path(temporary) / "output"
        with log.open("w") as output:
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        url, image = f"http://127.0.0.1:{port}", np.full((1, 64, 64, 3), 128, np.uint8)
        try:
            deadline = time.monotonic() + 600
            # With a configuration file `serve run` never says that the applications are ready.
            while not all_there(url):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert listening_addresses(port) == {"127.0.0.1"}
            heard = listening(server.pid)
            assert not silent(heard, "gcs_server", "raylet", "ProxyActor", "ServeReplica:rewards:Gateway")
            assert exposed(heard) == {}
            assert httpx.get(f"{url}/v1/rewards", timeout=60).status_code == 401
            command = [sys.executable, "-c", SCORE_FROM_OUTSIDE, cluster_address(server.pid)]
            scored = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
            assert scored.returncode == 0, scored.stderr
            expected = ClipScorer(str(folder)).score(image, ["a red circle"])
            assert float(scored.stdout) == pytest.approx(float(expected.values[0]), rel=1e-6)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("REWARD_SERVER_TOKEN", REWARD_TOKEN)
                over_http = HttpScore(f"{url}#clip")(image, ["a red circle"]).values
                facts = HttpScore(f"{url}#verifier")(image, ["a red circle"]).values
            assert over_http == pytest.approx(expected.values, rel=1e-6)
            assert facts == [0]  # nothing of it is in a grey picture
            assert REWARD_TOKEN not in log.read_text()
        finally:
            server.terminate()  # an interrupt is ignored below a shell that runs the tests in the background
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()  # its cluster's processes end with it
                server.wait()


def all_there(url: str) -> bool:
    """Whether the gateway answers and says that every reward is there."""
    try:
        answer = httpx.get(f"{url}/healthz", timeout=5)
        return answer.status_code == 200 and answer.json() == {"status": "ok"}
    except (httpx.TransportError, ValueError):
        return False


def cluster_address(pid: int) -> str:
    """Address of the cluster that a process started; "auto" would take any that runs on this machine."""
    import psutil

    words = [word for child in psutil.Process(pid).children(recursive=True) for word in child.cmdline()]
    return next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))


def listening_addresses(port: int) -> set[str]:
    """IPv4 and IPv6 addresses on which this machine listens at a port."""
    import psutil

    connections = psutil.net_connections("tcp")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
