"""What holds for every scorer on a torch model: bits, failures, gradients, refusals of what cannot be read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sharpening.rewards import load_reward
from tests.small_clip import make_clip_folder
from tests.small_rewards import (
    head_state,
    make_compositional_folder,
    make_hps_checkpoint,
    make_image_reward_folder,
    make_pickscore_folder,
    register_hps_architecture,
)

NAMES = ("clip", "aesthetic", "hpsv2", "pickscore", "image_reward", "compositional")
WORDS = ("a red circle", "a green square, left of a circle", "square", "of of of", "a", "red", "zebra")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each reward is made with."""
    place = tmp_path_factory.mktemp("models")
    clip = str(make_clip_folder(place / "clip", image_size=32))
    torch.save(head_state("mlp", 64), place / "head.pth")
    return {
        "clip": {"model": clip},
        "aesthetic": {"model": clip, "checkpoint": str(place / "head.pth")},
        "hpsv2": {
            "model": register_hps_architecture(place / "architectures"),
            "checkpoint": str(make_hps_checkpoint(place / "HPS_v2.1_compressed.pt")),
        },
        "pickscore": {"model": str(make_pickscore_folder(place / "pickscore"))},
        "image_reward": {"model": str(make_image_reward_folder(place / "image_reward"))},
        "compositional": {"model": str(make_compositional_folder(place / "itercomp"))},
    }


@pytest.fixture(scope="module", params=NAMES)
def scorer(request: pytest.FixtureRequest, options: dict[str, dict[str, Any]]) -> Any:
    return load_reward(request.param, **options[request.param], batch_size=4)


def random_images(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (50, 41)])
def test_a_score_is_the_same_in_any_company_to_the_last_bit(scorer: Any, size: tuple[int, int]) -> None:
    images, prompts = random_images(7, size), list(WORDS)
    together = scorer(images, prompts)
    assert together.values.dtype == np.float32
    assert together.failures == {}
    for some in ([0], [6], [5, 2, 0, 3, 1], [6, 4]):
        values = scorer(images[some], [prompts[i] for i in some]).values
        assert values.tobytes() == together.values[some].tobytes()
    assert len(set(together.values.tolist())) == 7


def test_requests_that_cannot_be_read_are_refused(scorer: Any) -> None:
    assert scorer(np.zeros((0, 32, 32, 3), np.uint8), []).values.shape == (0,)
    with pytest.raises(ValueError, match="uint8"):
        scorer(np.zeros((1, 32, 32, 3), np.float32), ["a"])
    with pytest.raises(ValueError, match="2 images need a list of as many prompts, not 1"):
        scorer(random_images(2), ["a"])
    with pytest.raises(ValueError, match="2 images need as many prompts, not 1"):
        scorer.differentiable(torch.zeros(2, 3, 32, 32), ["a"])


def test_differentiable_form_equals_the_score_and_its_slope_finite_differences(scorer: Any) -> None:
    prompts = list(WORDS[:4])
    smooth = np.random.default_rng(2).integers(0, 256, (4, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    pixels = torch.from_numpy(smooth).permute(0, 3, 1, 2).float() / 255
    scores = scorer(smooth, prompts).values
    leaf = pixels.clone().requires_grad_()
    values = scorer.differentiable(leaf, prompts)
    np.testing.assert_allclose(values.detach().numpy(), scores, atol=2e-4 * max(1.0, np.abs(scores).max()))
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    direction = torch.sign(gradient)
    slope = (gradient * direction).sum((1, 2, 3)).numpy()
    assert (slope > 0).all()
    step = 1e-3  # so large that float32's rounding is small beside the difference
    with torch.no_grad():
        high, low = (scorer.differentiable(pixels + sign * step * direction, prompts).numpy() for sign in (1, -1))
    np.testing.assert_allclose((high - low) / (2 * step), slope, rtol=0.05, atol=0.05 * slope.max())


def broken(parameter: Callable[[Any], torch.Tensor]) -> Callable[[Any], None]:
    def act(scorer: Any) -> None:
        with torch.no_grad():
            parameter(scorer).fill_(torch.nan)

    return act


BREAKS: dict[str, Callable[[Any], None]] = {
    "clip": broken(lambda scorer: scorer._model.token_embedding.weight[1]),  # unknown words
    "hpsv2": broken(lambda scorer: scorer._model.token_embedding.weight[scorer._tokenizer(["zebra"])[0, 1]]),
    "pickscore": broken(
        lambda scorer: scorer._model.text_model.embeddings.token_embedding.weight[
            scorer._tokenizer("z")["input_ids"][1]
        ]
    ),
    "image_reward": broken(lambda scorer: scorer._reader.embeddings.word_embeddings.weight[1]),
    "compositional": broken(lambda scorer: scorer._models[1]._reader.embeddings.word_embeddings.weight[1]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_score_that_is_not_finite_is_a_failure(name: str, options: dict[str, dict[str, Any]]) -> None:
    scorer = load_reward(name, **options[name], batch_size=4)
    images = random_images(5)
    word = "z" if name == "pickscore" else "zebra"
    BREAKS[name](scorer)
    scores = scorer(images, ["a red circle", word, "square", f"a {word}", "red"])
    assert scores.failures == {1: "not finite", 3: "not finite"}
    assert np.isnan(scores.values[[1, 3]]).all()
    assert np.isfinite(scores.values[[0, 2, 4]]).all()


def test_an_aesthetic_score_does_not_depend_on_the_prompt_and_fails_alone(options: dict[str, dict[str, Any]]) -> None:
    scorer = load_reward("aesthetic", **options["aesthetic"], batch_size=2)
    image = random_images(1)
    assert scorer(image, ["a"]).values == scorer(image, ["a red circle"]).values
    with torch.no_grad():
        scorer._head[4].bias.fill_(torch.inf)
    scores = scorer(np.repeat(image, 3, 0), ["a"] * 3)
    assert scores.failures == dict.fromkeys(range(3), "not finite")
    assert np.isnan(scores.values).all()


def test_batch_sizes_below_one_are_refused(options: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="batch_size is 0; pass 1 or more"):
        load_reward("clip", **options["clip"], batch_size=0)
