"""The grader through the real `openai` client, against an OpenAI-compatible endpoint on loopback."""

import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sharpening.rewards import RewardUnavailable, load_reward
from sharpening.rewards.base import RewardMisconfigured
from sharpening.rewards.grader.answer import UnreadableAnswer, read_marks
from sharpening.rewards.grader.endpoint import OPENAI_URL, Endpoint, check_url
from sharpening.rewards.grader.scorer import GraderScorer
from sharpening.rewards.requests import score_requests
from tests.listening import free_port
from tests.openai_server import CRITERIA, OpenAIServer, Received, Reply, completion, openai_server, refusal, score_of

KEY = "sk-test-5ecret0fTheTestsAlone"
GOOD = json.dumps(dict.fromkeys(CRITERIA, 60))
MakeScorer = Callable[..., GraderScorer]


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> OpenAIServer:
    """The endpoint, with nothing asked yet, and an environment that names it and the key."""
    running.reset()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", running.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return running


@pytest.fixture(autouse=True)
def _no_log_names_the_key(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    records = caplog.get_records("call")
    formatter = logging.Formatter("%(message)s")
    assert not [record for record in records if KEY in formatter.format(record)]


@pytest.fixture
def make(server: OpenAIServer) -> MakeScorer:
    def make(**options: object) -> GraderScorer:
        scorer = load_reward("grader", **{"model": "judge", "device": "cpu", "batch_size": 4, **options})
        assert isinstance(scorer, GraderScorer)
        return scorer

    return make


def pictures(count: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# -- what is asked and what is answered ------------------------------------------------------------------------------


def test_the_endpoint_sees_pixels_prompt_and_schema_and_the_score_is_the_mean_of_its_marks(
    server: OpenAIServer, make: MakeScorer
) -> None:
    images, prompts = pictures(3, 13, 21), ["a red circle", "ein Würfel, 日本", "two\nlines"]
    scores = make(seed=7, detail="low")(images, prompts)
    assert scores.failures == {}
    assert scores.values.dtype == np.float32
    wanted = [score_of(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    assert scores.values == pytest.approx(wanted, rel=1e-6)
    assert len(server.received) == 3
    for image, prompt in zip(images, prompts, strict=True):
        (request,) = server.asked(prompt)
        assert request.path == "/v1/chat/completions"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert np.array_equal(request.image, image)
        body = request.body
        assert (body["model"], body["temperature"], body["seed"]) == ("judge", 0, 7)
        assert body["messages"][1]["content"][1]["image_url"]["detail"] == "low"
        form = body["response_format"]["json_schema"]
        assert (body["response_format"]["type"], form["strict"]) == ("json_schema", True)
        assert tuple(form["schema"]["required"]) == tuple(form["schema"]["properties"]) == CRITERIA
        instructions = body["messages"][0]["content"]
        assert all(f"\n\n{criterion}: " in instructions for criterion in CRITERIA)


@pytest.mark.parametrize(
    "wrapping", ["%s", "```json\n%s\n```", "Here are my marks:\n%s\nThe image is lovely.", " \n%s "]
)
def test_marks_are_read_from_whatever_stands_around_them(wrapping: str) -> None:
    values = dict(zip(CRITERIA, (0, 12.5, 99.999, 100, 3e1), strict=True))
    assert read_marks(wrapping % json.dumps({"overall": 3, **values})) == values


UNREADABLE = {
    "nothing": "",
    "words": "It is a fine picture.",
    "broken": GOOD[:-4],
    "list": json.dumps([60] * 5),
    "missing": json.dumps(dict.fromkeys(CRITERIA[:4], 60)),
    "above": GOOD.replace("60", "100.5"),
    "below": GOOD.replace("60", "-1"),
    "text": GOOD.replace("60", '"60"'),
    "true": GOOD.replace("60", "true"),
    "null": GOOD.replace("60", "null"),
    "huge": GOOD.replace("60", "1" * 5000),
    "deep": "{" + '"a":{' * 20_000 + "}" * 20_001,
    "nan": GOOD.replace("60", "NaN"),
    "infinite": GOOD.replace("60", "1e999"),
}


def test_an_unreadable_answer_is_asked_for_again_and_then_a_failure_of_its_image_alone(
    server: OpenAIServer, make: MakeScorer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = {prompt: [Reply(words)] for prompt, words in UNREADABLE.items()}
    server.script |= {
        "html": [Reply(raw=b"<html>a portal</html>", headers={"Content-Type": "text/html"})],
        "no json": [Reply(raw=b'{"choices": [')],
        "not text": [Reply(raw=b'{"choices": "\xff\xfe"}')],
        "no choice": [Reply(body={"object": "chat.completion", "choices": []})],
        "no object": [Reply(raw=b"[1]")],
        "no content": [Reply(body=completion(None))],
    }
    prompts = [*server.script, "a cat"]
    images = pictures(len(prompts))
    scorer = make(max_answers=2)
    scores = scorer(images, prompts)
    finite = {"nan", "infinite"}
    assert scores.failures == {
        i: "not finite" if prompt in finite else "unreadable answer" for i, prompt in enumerate(prompts[:-1])
    }
    assert np.isnan(scores.values[:-1]).all()
    assert scores.values[-1] == pytest.approx(score_of(images[-1], "a cat"))
    assert {prompt: len(server.asked(prompt)) for prompt in prompts} == dict.fromkeys(prompts[:-1], 2) | {"a cat": 1}
    assert scorer.usage().asked_again == len(prompts) - 1
    assert len(warnings_in(caplog)) == 1


def test_what_was_wrong_with_an_answer_is_said_with_the_next_question(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {"a": [Reply(UNREADABLE["missing"]), Reply(UNREADABLE["above"]), Reply(GOOD)]}
    scores = make()(pictures(1), ["a"])
    assert scores.failures == {}
    assert scores.values.tolist() == [60.0]
    first, second, third = (request.body["messages"] for request in server.asked("a"))
    assert second[:2] == first
    assert third[:4] == second
    assert second[2] == {"role": "assistant", "content": UNREADABLE["missing"]}
    assert "emotional_resonance is missing" in second[3]["content"]
    assert "accuracy_to_prompt is not between 0 and 100" in third[5]["content"]


def test_a_model_that_refuses_rejects_the_image(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {
        "refused": [Reply(body=completion(None, refusal="I cannot judge that."))],
        "filtered": [Reply(body=completion("{", finish_reason="content_filter"))],
        "policy": [refusal(400, "sunflower seeds violate the content policy", code="content_policy_violation")],
        "flagged": [refusal(403, "your input was flagged by moderation")],
        "large": [refusal(413, "too large")],
    }
    prompts = [*server.script, "fine", "\ud800"]
    scores = make()(pictures(7), prompts)
    assert scores.failures == dict.fromkeys((0, 1, 2, 3, 4, 6), "rejected")
    assert np.isfinite(scores.values[5])
    assert len(server.received) == 6  # none was asked for again, and what is no text was not sent


# -- what goes wrong on the way --------------------------------------------------------------------------------------


def test_what_can_be_retried_is_retried(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {
        "busy": [refusal(429, "slow down"), Reply(GOOD)],
        "error": [refusal(500, "oops"), refusal(503, "still"), Reply(GOOD)],
        "cut": [Reply(drop="before"), Reply(GOOD)],
        "half": [Reply(GOOD, drop="within"), Reply(GOOD)],
    }
    prompts = list(server.script)
    scorer = make()
    scores = scorer(pictures(4), prompts)
    assert scores.failures == {}
    assert scores.values.tolist() == [60.0] * 4
    assert [len(server.asked(prompt)) for prompt in prompts] == [2, 3, 2, 2]
    usage = scorer.usage()
    assert (usage.requests, usage.retries, usage.asked_again) == (9, 5, 0)


def test_a_request_that_takes_too_long_is_sent_again(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {"slow": [Reply(GOOD, delay_s=60), Reply(GOOD)]}
    scores = make(timeout_s=1.5)(pictures(1), ["slow"])
    assert scores.values.tolist() == [60.0]
    assert len(server.asked("slow")) > 1


def test_as_long_as_the_endpoint_asks_for_is_waited(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {
        "seconds": [Reply(status=429, body={}, headers={"Retry-After": "2"}), Reply(GOOD)],
        "too long": [Reply(status=429, body={}, headers={"Retry-After": "3600"})],
        "nonsense": [Reply(status=429, body={}, headers={"Retry-After": "soon"}), Reply(GOOD)],
        "date": [
            Reply(status=429, body={}, headers={"Retry-After": "Wed, 21 Oct 2093 07:28:00 GMT"}), Reply(GOOD)
        ],
        "past": [Reply(status=429, body={}, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), Reply(GOOD)],
    }  # fmt: skip
    scores = make()(pictures(5), list(server.script))
    first, second = server.asked("seconds")
    assert second.at - first.at >= 2.0
    assert scores.failures == {1: "unavailable", 3: "unavailable"}  # nobody waits beyond the deadline
    assert [len(server.asked(prompt)) for prompt in ("too long", "date")] == [1, 1]


def test_what_stays_wrong_is_a_failure_of_its_image_alone(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {
        "error": [refusal(500, "oops")], "cut": [Reply(drop="before")], "busy": [refusal(429, "slow down")],
    }  # fmt: skip
    prompts = [*server.script, "a", "b"]
    images = pictures(5)
    scorer = make(max_attempts=2)
    scores = scorer(images, prompts)
    assert scores.failures == dict.fromkeys(range(3), "unavailable")
    assert scores.values[3:] == pytest.approx([score_of(images[i], prompts[i]) for i in (3, 4)])
    assert {len(server.asked(prompt)) for prompt in prompts[:3]} == {2}
    assert scorer.usage().failures == {"unavailable": 3}


def test_an_images_deadline_ends_its_retries(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {"slow": [Reply(GOOD, delay_s=60)], "fine": [Reply(GOOD)]}
    scorer = make(timeout_s=60.0, deadline_s=3.0)
    scores = scorer(pictures(2), ["slow", "fine"])
    assert scores.failures == {0: "timeout"}
    assert scores.values[1] == 60.0
    assert len(server.asked("slow")) == 1
    assert scorer.usage().failures == {"timeout": 1}


def test_an_endpoint_that_is_down_is_unavailable_and_not_asked_for_every_image(
    server: OpenAIServer, make: MakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.always = refusal(500, f"down, {KEY}\nand more")
    with pytest.raises(
        RewardUnavailable, match=r"^the grader at http://127.0.0.1:\d+/v1 gave no answer [^\n]*down"
    ) as raised:
        make(max_attempts=1, concurrency=2)(pictures(40), [f"prompt {i}" for i in range(40)])
    assert KEY not in str(raised.value)
    assert len(server.received) <= 5  # four in a row, and one that was under way
    closed = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(RewardUnavailable, match="gave no answer for any of 1 images: Connection error.*ConnectError"):
        make(base_url=closed, max_attempts=1)(pictures(1), ["a"])


REFUSALS: dict[str, tuple[Callable[[Received], Reply], str]] = {
    "key": (
        lambda request: refusal(401, f"Incorrect API key provided: {request.headers['authorization']}"),
        "does not accept the API key .* OPENAI_API_KEY",
    ),
    "permission": (lambda request: refusal(403, "no access"), "does not accept the API key .* OPENAI_API_KEY"),
    "model": (lambda request: refusal(404, f"no model, {KEY}"), "does not know the model judge"),
    "credit": (lambda request: refusal(429, "pay", code="insufficient_quota"), "OPENAI_API_KEY has no credit left"),
    "payment": (lambda request: refusal(402, "pay"), "OPENAI_API_KEY has no credit left"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_image_would_survive_stops_everything_at_once(
    name: str, server: OpenAIServer, make: MakeScorer
) -> None:
    server.always, words = REFUSALS[name]
    with pytest.raises(RewardMisconfigured, match=words) as raised:
        make(concurrency=2)(pictures(30), [f"prompt {i}" for i in range(30)])
    assert len(server.received) <= 3
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    seen: BaseException | None = raised.value
    while seen is not None:  # the client's own errors hold the request and its headers
        assert not hasattr(seen, "request")
        seen = seen.__cause__ or seen.__context__


def test_what_the_endpoint_does_not_know_is_left_out_from_then_on(
    server: OpenAIServer, make: MakeScorer, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Received) -> Reply:
        form = request.body.get("response_format", {}).get("type")
        if form is not None:
            return refusal(400, f"response_format.type: '{form}' is not supported")
        if "temperature" in request.body:
            return refusal(400, "Unsupported value: 'temperature' does not support 0", param="temperature")
        if "seed" in request.body:
            return Reply(status=422, body={"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]})
        return Reply("Marks: " + GOOD)

    server.always = answer
    scorer = make(concurrency=2)
    assert scorer(pictures(6), list("abcdef")).failures == {}
    assert len(server.received) <= 6 + 2 * 4  # two images may find the same out at the same time
    assert len(warnings_in(caplog)) == 4
    asked = len(server.received)
    assert scorer(pictures(5), list("ghijk")).failures == {}
    later = server.received[asked:]
    assert [set(request.body) for request in later] == [{"model", "messages"}] * 5


def test_an_endpoint_that_never_tires_of_refusing_is_not_asked_for_ever(server: OpenAIServer, make: MakeScorer) -> None:
    server.always = refusal(400, "response_format, temperature and seed are not what I like")
    assert make()(pictures(1), ["a"]).failures == {0: "rejected"}
    assert len(server.received) == 5  # with everything, two lesser forms, no temperature, no seed


# -- side by side, once, and at what cost ----------------------------------------------------------------------------


def test_as_many_images_as_allowed_are_asked_for_at_the_same_time(server: OpenAIServer, make: MakeScorer) -> None:
    together = threading.Barrier(4, timeout=60)  # breaks unless four requests are open at once

    def answer(request: Received) -> Reply:
        together.wait()
        return Reply(GOOD)

    server.always = answer
    scores = make(concurrency=4)(pictures(12), [f"prompt {i}" for i in range(12)])
    assert scores.failures == {}
    assert server.peak == 4


def test_a_pair_of_image_and_prompt_is_graded_once(server: OpenAIServer, make: MakeScorer) -> None:
    images = pictures(2)[[0, 0, 0, 1]]
    prompts = ["a", "a", "b", "a"]
    scorer = make()
    first = scorer(images, prompts)
    assert len(server.received) == 3
    again = scorer(images[::-1], prompts[::-1])
    assert len(server.received) == 3
    assert again.values.tolist() == first.values[::-1].tolist()
    usage = scorer.usage()
    assert (usage.images, usage.cached, usage.requests) == (8, 5, 3)
    scorer(np.ascontiguousarray(images.reshape(4, 6, 8, 3)), prompts)  # the same bytes, another image
    assert len(server.received) == 6


def test_failures_are_not_remembered_and_old_scores_are_forgotten(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {"a": [refusal(400, "no"), Reply(GOOD)]}
    scorer = make(cache_size=2)
    image = pictures(1)
    assert scorer(image, ["a"]).failures == {0: "rejected"}
    assert scorer(image, ["a"]).values.tolist() == [60.0]
    scorer(image, ["b"])
    scorer(image, ["a"])  # known, and used last
    scorer(image, ["c"])  # now b is forgotten
    before = len(server.received)
    scorer(image, ["a"])
    assert len(server.received) == before
    scorer(image, ["b"])
    assert len(server.received) == before + 1


def test_what_was_graded_before_everything_stopped_costs_nothing_again(server: OpenAIServer, make: MakeScorer) -> None:
    server.script = {"last": [refusal(401, "expired"), Reply(GOOD)]}
    scorer, images = make(concurrency=1), pictures(3)
    with pytest.raises(RewardUnavailable):
        scorer(images, ["a", "b", "last"])
    assert scorer(images, ["a", "b", "last"]).failures == {}
    assert [len(server.asked(prompt)) for prompt in ("a", "b", "last")] == [1, 1, 2]


def test_tokens_and_their_price_are_counted_and_told_once_a_call(
    server: OpenAIServer, make: MakeScorer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = {"again": [Reply("no"), Reply(GOOD)], "untold": [Reply(body={**completion(GOOD), "usage": None})]}
    scorer = make(prompt_price=0.15, completion_price=0.6)
    scorer(pictures(3), ["again", "untold", "a"])
    scorer(pictures(3), ["again", "untold", "a"])
    usage = scorer.usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (3 * 700, 3 * 40)
    assert usage.cost == pytest.approx((2100 * 0.15 + 120 * 0.6) / 1e6)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sharpening")]
    assert told == [
        "grader judge: 3 images (0 cached, 0 failed), 4 requests (0 retries, 1 asked again), 2100 prompt and 120 "
        "completion tokens, cost 0.0004"
    ]
    assert scorer.statistics() == {
        "grader_images": 6, "grader_cached": 3, "grader_requests": 4, "grader_retries": 0, "grader_asked_again": 1,
        "grader_prompt_tokens": 2100, "grader_completion_tokens": 120, "grader_failures": 0,
        "grader_cost": usage.cost,
    }  # fmt: skip
    assert make().usage().cost is None
    assert "grader_cost" not in make().statistics()


def test_calls_from_several_threads_take_turns(server: OpenAIServer, make: MakeScorer) -> None:
    server.always = Reply(GOOD, delay_s=0.2)
    scorer, images = make(concurrency=2), pictures(3)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: scorer(images, list("abc")), range(4)))
    assert [scores.values.tolist() for scores in found] == [[60.0] * 3] * 4
    assert server.peak <= 2
    assert len(server.received) == 3  # the first call's scores were known to the others


def test_requests_that_meet_an_endpoint_that_is_down_are_answered_together(
    server: OpenAIServer, make: MakeScorer
) -> None:
    server.always = refusal(500, "down")
    requests = [(pictures(1), [f"prompt {i}"]) for i in range(3)]
    answers = score_requests(make(max_attempts=1), requests)
    assert [type(answer) for answer in answers] == [RewardUnavailable] * 3
    assert len(server.received) == 3  # not one by one once more


def test_nothing_to_grade_and_what_cannot_be_graded(server: OpenAIServer, make: MakeScorer) -> None:
    scorer = make()
    assert scorer(pictures(0), []).values.shape == (0,)
    with pytest.raises(ValueError, match="uint8"):
        scorer(pictures(1).astype(np.float32), ["a"])
    with pytest.raises(ValueError, match="2 images need a list of as many prompts, not 1"):
        scorer(pictures(2), ["a"])
    assert server.received == []


# -- before anything is asked ----------------------------------------------------------------------------------------


def test_a_check_grades_one_image_or_says_why_not(server: OpenAIServer, make: MakeScorer) -> None:
    make().check()
    assert len(server.received) == 1
    server.always = Reply("I see no image.")
    with pytest.raises(RewardUnavailable, match=r"no grade for a grey image \(unreadable answer\); see whether judge"):
        make().check()


def test_the_key_is_read_at_each_call_and_kept_nowhere(
    server: OpenAIServer, make: MakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    scorer = make(api_key_variable="MY_KEY", seed=3)
    scorer(pictures(1), ["a"])
    frozen = pickle.dumps(scorer)
    assert KEY.encode() not in frozen
    monkeypatch.setenv("MY_KEY", "of-the-other-place")
    copy = pickle.loads(frozen)
    copy(pictures(1), ["b"])
    first, second = server.received
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert second.headers["authorization"] == "Bearer of-the-other-place"
    assert second.body["seed"] == 3
    monkeypatch.delenv("MY_KEY")
    assert scorer(pictures(1), ["c"]).failures == {}  # a server of one's own may need none
    for wrong in (KEY + "\n", "schlüssel", "two words"):
        monkeypatch.setenv("MY_KEY", wrong)
        with pytest.raises(RewardMisconfigured, match="the API key in MY_KEY has spaces, line ends") as raised:
            scorer(pictures(1), ["d"])
        assert wrong.strip() not in str(raised.value)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(RewardMisconfigured, match="needs an API key; set the environment variable MY_KEY"):
        make(base_url=OPENAI_URL, api_key_variable="MY_KEY")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000/v1", "not of the form"), ("ftp://host/v1", "not of the form"), ("http:///v1", "not of the"),
        ("https://host/v1?key=1", "not of the form"), ("http://host:port/v1", "cannot be read"),
        ("https://user:hunter2@host/v1", "names a user or password"), ("", "not of the form"),
    ],
)  # fmt: skip
def test_what_is_no_base_url_is_refused_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        check_url(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://judge.example/v1", 1), ("https://judge.example/v1", 0), ("http://localhost:11434/v1", 0),
        ("http://[::1]:8000/v1", 0), ("http://127.0.0.9:8000/v1/", 0), ("http://192.168.0.7:8000/v1", 1),
    ],
)  # fmt: skip
def test_a_key_in_clear_text_is_warned_of(
    url: str, warned: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Endpoint.of("judge", url, "OPENAI_API_KEY").url == url.rstrip("/")
    assert len(warnings_in(caplog)) == warned
    monkeypatch.delenv("OPENAI_API_KEY")
    Endpoint.of("judge", url, "OPENAI_API_KEY")
    assert len(warnings_in(caplog)) == warned


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": " "}, "needs a model"), ({"concurrency": 0}, "concurrency is 0; pass a number above 0"),
        ({"timeout_s": -1.0}, "timeout_s is -1.0"), ({"deadline_s": float("nan")}, "deadline_s is nan"),
        ({"base_url": "judge.example"}, "not of the form"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, object], words: str, make: MakeScorer) -> None:
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_the_mean_is_not_taken_of_what_cannot_be_read() -> None:
    with pytest.raises(UnreadableAnswer, match="visual_quality is no number"):
        read_marks(json.dumps(dict.fromkeys(CRITERIA, 50) | {"visual_quality": "good"}))
