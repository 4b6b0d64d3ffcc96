from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from reward_servers.options import RewardAppOptions
from sharpening.rewards.base import Scores
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
