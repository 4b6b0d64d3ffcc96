from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from reward_servers.options import RewardAppOptions
from sharpening.rewards.base import RewardUnavailable, Scores
from sharpening.rewards.requests import Request, score_requests


def request(values: list[int], size: int = 4) -> Request:
    images = np.zeros((len(values), size, size, 3), np.uint8)
    images[:, 0, 0, 0] = values
    return images, [str(value) for value in values]


class FirstPixel:
    """Scores an image by its first pixel; 99 is not finite, 77 is refused."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        self.calls.append(list(prompts))
        values = images[:, 0, 0, 0].astype(np.float32)
        if 77 in values:
            raise ValueError("refused")
        failed = np.flatnonzero(values == 99)
        values[failed] = np.nan
        return Scores(values, {int(i): "not finite" for i in failed})


def test_requests_of_one_size_share_a_call_and_get_their_own_scores_back() -> None:
    scorer = FirstPixel()
    answers = score_requests(scorer, [request([1, 2]), request([3], size=8), request([4, 99, 6]), request([])])
    assert scorer.calls == [["1", "2", "4", "99", "6"], ["3"]]
    assert [list(answer.values) for answer in answers[:2]] == [[1, 2], [3]]
    assert list(answers[2].values[[0, 2]]) == [4, 6]
    assert [answer.failures for answer in answers] == [{}, {}, {1: "not finite"}, {}]
    assert answers[3].values.shape == (0,)


def test_refused_request_spoils_no_other() -> None:
    answers = score_requests(FirstPixel(), [request([1]), request([5, 77]), request([2, 3])])
    assert list(answers[0].values) == [1]
    assert isinstance(answers[1], ValueError)
    assert list(answers[2].values) == [2, 3]


def test_a_service_that_is_down_is_asked_once_and_not_for_each_request() -> None:
    calls = []

    def down(images: np.ndarray, prompts: Sequence[str]) -> Scores:
        calls.append(len(images))
        raise RewardUnavailable("down")

    answers = score_requests(down, [request([1]), request([2, 3])])
    assert [type(answer) for answer in answers] == [RewardUnavailable] * 2
    assert calls == [3]


def test_scorer_that_loses_images_is_an_error() -> None:
    (answer,) = score_requests(lambda images, prompts: Scores(np.zeros(1, np.float32)), [request([1, 2])])
    assert isinstance(answer, RuntimeError)


def test_options_are_read_from_text_and_checked() -> None:
    options = RewardAppOptions.model_validate({"num_replicas": "2", "num_cpus": "0.5", "model": "folder"})
    assert (options.num_replicas, options.num_cpus, options.deployment_name) == (2, 0.5, "ClipReward")
    assert options.scorer_options() == {"model": "folder", "device": "cpu", "batch_size": 32}
    assert RewardAppOptions(num_gpus=0.5).scorer_options()["device"] == "cuda"
    assert RewardAppOptions(reward="tests.small_clip:BlackIsNotFinite").deployment_name == "BlackIsNotFiniteReward"
    for wrong in ({"replicas": 2}, {"batch_size": 0}, {"max_ongoing_requests": 4}, {"num_cpus": "many"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            RewardAppOptions.model_validate(wrong)


def test_options_of_the_scorer_itself_are_passed_on_and_may_be_text() -> None:
    for given in ({"weights": [1, 0]}, '{"weights": [1, 0]}'):
        options = RewardAppOptions.model_validate({"reward": "embedded-compositional", "options": given})
        assert options.scorer_options() == {"weights": [1, 0], "device": "cpu", "batch_size": 32}
    for wrong, words in (("{", "no JSON object"), ("[1]", "dictionary"), ({"device": "cuda"}, "option of its own")):
        with pytest.raises(ValidationError, match=words):
            RewardAppOptions.model_validate({"options": wrong})


def test_replicas_are_fixed_or_scaled_between_bounds() -> None:
    fixed = RewardAppOptions.model_validate({"num_replicas": "3"}).deployment_options()
    assert fixed["num_replicas"] == 3
    assert "autoscaling_config" not in fixed
    scaled = RewardAppOptions(num_replicas=2, max_replicas=4, max_batch_requests=16).deployment_options()
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"] == {
        "min_replicas": 1, "max_replicas": 4, "initial_replicas": 2, "target_ongoing_requests": 32,
        "upscale_delay_s": 10.0, "downscale_delay_s": 300.0,
    }  # fmt: skip
    chosen = RewardAppOptions(min_replicas=3, max_replicas=4, target_ongoing_requests=7).deployment_options()
    assert chosen["autoscaling_config"]["initial_replicas"] == 3
    assert chosen["autoscaling_config"]["target_ongoing_requests"] == 7
    for wrong in ({"min_replicas": 3, "max_replicas": 2}, {"min_replicas": 2}):
        with pytest.raises(ValidationError, match="min_replicas"):
            RewardAppOptions.model_validate(wrong)


def test_a_replica_may_have_packages_of_its_own() -> None:
    def environment(options: RewardAppOptions) -> dict[str, object]:
        return options.deployment_options()["ray_actor_options"]["runtime_env"]

    assert "pip" not in environment(RewardAppOptions())
    options = RewardAppOptions.model_validate({"pip": "image-reward==1.5, transformers<5", "num_threads": 2})
    assert environment(options)["pip"] == ["image-reward==1.5", "transformers<5"]
    assert environment(options)["env_vars"] == {
        "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"
    }  # fmt: skip
