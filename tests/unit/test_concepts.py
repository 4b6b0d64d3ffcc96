"""The pictures of docs/concepts.md show what the method computes."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from sharpening.concepts import pictures
from sharpening.concepts.walk import drawn, noised, walk
from sharpening.rewards.base import Scores
from sharpening.seeds import noise

PROMPT, STEPS, PLACES = "a red circle", 6, [1, 5]


def score(images: np.ndarray, prompts: list[str]) -> Scores:
    assert len(images) == len(prompts)
    return Scores(images.mean(axis=(1, 2, 3)).astype(np.float32))


@pytest.fixture
def found(policy):
    return walk(policy, score, PROMPT, branches=3, states=2, places=PLACES, steps=STEPS)


def test_a_path_is_judged_by_the_mean_of_the_states_that_exist(found) -> None:
    assert found.exists.tolist() == [[True, True], [True, False]]  # the grid ends after the second walk's first state
    for k in range(3):
        first = found.predicted[0, k].mean(axis=(1, 2, 3)).mean()
        second = found.predicted[1, k, 0].mean()
        assert found.paths[k] == pytest.approx((first + second) / 2, rel=1e-5)
    assert (found.winner, found.loser) == (int(found.paths.argmax()), int(found.paths.argmin()))


def test_a_state_is_its_own_image_noised_and_predicted(policy, found) -> None:
    grid = policy.timesteps(STEPS)
    assert found.timesteps[:, 0].tolist() == grid[PLACES].tolist()
    x0 = drawn(policy, PROMPT, 3, STEPS)
    np.testing.assert_array_equal(found.images, policy.decode(x0))
    eps = noise(policy.latent_shape, 0, "concepts", "branch", PLACES[1]).expand_as(x0)
    t = grid[[PLACES[1]] * 3]
    with torch.no_grad():
        expected = policy.decode(policy.predict(policy.add_noise(x0, eps, t), t, policy.encode([PROMPT] * 3), 1.0).x0)
    assert np.abs(found.predicted[1, :, 0].astype(int) - expected).max() <= 1


def test_every_picture_is_one(policy, found) -> None:
    seen = noised(policy, score, PROMPT, STEPS)
    assert len(seen.timesteps) == len(seen.states) == len(seen.predicted) == STEPS
    grid = found.images[None, :2]
    for picture in (
        pictures.noising(seen, PROMPT),
        pictures.branches(found, PROMPT),
        pictures.temperature(found),
        pictures.loss_curves(200.0, 0.02, (0.0, 20.0)),
        pictures.guidance(grid, np.zeros((1, 2)), [PROMPT], (1.0, 3.0)),
    ):
        assert Image.open(BytesIO(picture)).width > 400
