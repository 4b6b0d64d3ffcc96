"""The reward behind a real Ray Serve: one replica serves all tests, and is killed and deleted in the last ones."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sharpening.checks import ModelFolderError
from sharpening.rewards import RewardUnavailable, Scores
from sharpening.rewards.base import RewardMisconfigured
from sharpening.rewards.clip import ClipScorer
from tests.openai_server import OpenAIServer, Reply, openai_server, refusal, score_of
from tests.small_clip import make_clip_folder

ROOT = Path(__file__).resolve().parents[2]
SCORER = "tests.small_clip:BlackIsNotFinite"
PROMPTS = ["a red circle", "a blue square left of a green cross", "a dotted triangle above a cross"]
# A local Ray asks for a token and would write one into the home.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


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
        import ray

        from reward_servers.client import start_reward_app, stop_reward_app
        from reward_servers.options import RewardAppOptions

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            options = RewardAppOptions(name="reward-test", reward=SCORER, model=str(folder), num_threads=1)
            start_reward_app(options)
            yield options.name
            stop_reward_app(options.name)
        finally:
            ray.serve.shutdown()
            ray.shutdown()


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


def statistics(app: str) -> dict[str, int]:
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
    from reward_servers.client import ServeScore, start_reward_app, stop_reward_app
    from reward_servers.options import RewardAppOptions

    start_reward_app(RewardAppOptions(name="grader-test", reward="grader", model="judge"))
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


def test_killed_replica_loses_no_request(app: str, expected: ClipScorer) -> None:
    from reward_servers.client import ServeScore

    requests = make_requests()
    local = [expected.score(*request) for request in requests]
    pid = statistics(app)["pid"]
    score = ServeScore(app, request_timeout_s=60, deadline_s=200)
    answered = [0]
    killed = threading.Event()

    def kill() -> None:
        while answered[0] < 10:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    def ask(number: int) -> bool:
        served = score(*requests[number % len(requests)])
        answered[0] += 1
        return same(served, local[number % len(requests)])

    threading.Thread(target=kill, daemon=True).start()
    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(60)))
    assert killed.is_set()
    assert statistics(app)["pid"] != pid


def test_deleted_application_is_unavailable_after_the_deadline(app: str) -> None:
    from ray import serve

    from reward_servers.client import ServeScore, stop_reward_app

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

    from reward_servers.client import start_reward_app
    from reward_servers.options import RewardAppOptions

    with pytest.raises(ModelFolderError, match="has no open_clip_config.json"):
        start_reward_app(RewardAppOptions(name="reward-broken", model=str(tmp_path)))
    with pytest.raises(
        RewardUnavailable, match="'reward-broken' did not start .*'tests.absent:Scorer' cannot be imported"
    ):
        start_reward_app(RewardAppOptions(name="reward-broken", reward="tests.absent:Scorer"))
    assert "reward-broken" not in serve.status().applications


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", *arguments]


def test_serve_build_writes_the_bound_application(tmp_path: Path) -> None:
    output = tmp_path / "serve.yaml"
    subprocess.run(serve_command("build", "reward_servers.app:app", "-o", str(output)), cwd=ROOT, check=True)
    (application,) = yaml.safe_load(output.read_text())["applications"]
    assert application["import_path"] == "reward_servers.app:app"
    (deployment,) = application["deployments"]
    assert deployment["name"] == "ClipReward"
    assert deployment["max_ongoing_requests"] == 64


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
    config["applications"][0]["args"]["model"] = str(folder)
    # Short: Ray's sockets lie under it. A folder and a local cluster of its own keep it apart from other clusters.
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        (Path(temporary) / "serve.yaml").write_text(yaml.safe_dump(config))
        environment = {**os.environ, **TOKEN, "RAY_TMPDIR": temporary, "PYTHONUNBUFFERED": "1"}
        environment.pop("RAY_ADDRESS", None)
        command = serve_command("run", "--address", "local", str(Path(temporary) / "serve.yaml"))
        log = Path(temporary) / "output"
        with log.open("w") as output:
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 150
            # With a configuration file `serve run` never says that the application is ready.
            while "Deploying new app 'reward'" not in log.read_text() or not answers(port):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert listening_addresses(port) == {"127.0.0.1"}
            command = [sys.executable, "-c", SCORE_FROM_OUTSIDE, cluster_address(server.pid)]
            scored = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
            assert scored.returncode == 0, scored.stderr
            expected = ClipScorer(str(folder)).score(np.full((1, 64, 64, 3), 128, np.uint8), ["a red circle"])
            assert float(scored.stdout) == pytest.approx(float(expected.values[0]), rel=1e-6)
        finally:
            server.terminate()  # an interrupt is ignored below a shell that runs the tests in the background
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()  # its cluster's processes end with it
                server.wait()


def answers(port: int) -> bool:
    """Whether Serve's proxy answers; not with 200, for the application has no HTTP route."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/-/healthz", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


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
