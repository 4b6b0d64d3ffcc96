"""Captions read back into facts, the exact reward, and the ranked scenes that heads learn from."""

from __future__ import annotations

import numpy as np
import pytest

from sharpening.rewards import load_reward
from sharpening.shapes.assets import training_prompts
from sharpening.shapes.benchmark import benchmark, caption_for, excluded_prompts, validation_benchmark
from sharpening.shapes.captions import Claims, ThingClaim, corrupt, facts_of, say
from sharpening.shapes.parsing import parse
from sharpening.shapes.ranked_images import ranked_renders
from sharpening.shapes.ranked_scenes import RESPECTS, draw_pair, fulfils
from sharpening.shapes.render import render
from sharpening.shapes.scene import Scene, Thing, held_out, random_scene
from sharpening.shapes.verifiers import verify


def test_captions_are_read_back_as_they_were_worded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1500):
        caption, claims = caption_for(random_scene(rng), rng, set())
        assert parse(caption) == claims, caption
        wrong = corrupt(claims, rng)
        assert parse(say(wrong, rng)) == wrong
    assert parse("an image of two dotted crosses in front of grey") == Claims(
        (ThingClaim("cross", None, "dotted"),) * 2, count=2, background="grey"
    )


def test_facts_of_every_benchmark_prompt_are_found_in_its_words() -> None:
    for prompt in benchmark() + validation_benchmark():
        claims = parse(prompt.prompt)
        assert claims is not None
        assert facts_of(claims) == prompt.facts
    assert all(parse(prompt) is not None for prompt in training_prompts())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red circle",
        "a big red circle",
        "A red circle",
        "two red circle",
        "two crosss",
        "a red circle on a red background",
        "a red circle left of a blue square",
        "a large red circle and a large blue square",
        "a picture of a picture of a circle",
        "a red circle, please",
    ],
)
def test_what_the_grammar_cannot_say_is_not_read(text: str) -> None:
    assert parse(text) is None


def test_verifier_reward_is_the_share_of_right_facts() -> None:
    scene = Scene(
        (Thing("circle", "red", "plain", 16, 32, 12.0), Thing("square", "blue", "plain", 48, 32, 8.0)), "black"
    )
    prompts = [
        "a red circle to the left of a blue square",  # all 5
        "a red circle to the right of a blue square",  # 4 of 5
        "a red circle and a green square",  # 3 of 4
        "two red circles",  # shape and colour of one, and the count: 3 of 5
        "a photo of a cat",
        "a red circle on a black background",
    ]
    images = np.stack([render(scene)] * len(prompts))
    scores = load_reward("embedded-verifier", device="cpu", batch_size=2)(images, prompts)
    assert scores.values.dtype == np.float32
    np.testing.assert_allclose(scores.values[[0, 1, 2, 3, 5]], [1, 4 / 5, 3 / 4, 3 / 5, 1], rtol=1e-6)
    assert scores.failures == {4: "rejected"}
    assert np.isnan(scores.values[4])
    with pytest.raises(ValueError, match=r"64, 64, 3"):
        load_reward("embedded-verifier")(np.zeros((1, 32, 32, 3), np.uint8), ["a circle"])


def test_fulfilment_is_judged_as_by_hand() -> None:
    scene = Scene(
        (Thing("circle", "red", "striped", 16, 32, 12.0), Thing("square", "blue", "plain", 48, 32, 8.0)), "grey"
    )
    circle, square = ThingClaim("circle", "red"), ThingClaim("square", "blue", "plain")
    assert fulfils(scene, Claims((square, circle), relation="right of", background="grey"))
    assert fulfils(scene, Claims((circle, square), larger=True))
    assert not fulfils(scene, Claims((circle, square), larger=False))
    assert not fulfils(scene, Claims((circle, square), relation="right of"))
    assert not fulfils(scene, Claims((ThingClaim("circle", "blue"), ThingClaim("square", "red"))))
    assert not fulfils(scene, Claims((circle,), count=1))
    assert not fulfils(scene, Claims((circle,), background="white"))
    assert not fulfils(scene, Claims((circle, circle)))


@pytest.mark.parametrize("respect", RESPECTS)
def test_ranked_scenes_differ_in_one_respect_and_captions_tell_them_apart(respect: str) -> None:
    rng = np.random.default_rng(4)
    excluded = excluded_prompts()
    told = asked = 0
    for _ in range(40):
        pair = draw_pair(respect, rng, excluded)
        assert not any(held_out(scene) for scene in pair.scenes)
        assert excluded.isdisjoint(pair.captions[0] + pair.captions[1])
        first, second = ({thing.binding for thing in scene.things} for scene in pair.scenes)
        assert (first == second) == (respect != "attribute")
        assert (pair.scenes[0].background == pair.scenes[1].background) == (respect != "background")
        for side, captions in enumerate(pair.captions):
            for caption in captions:
                facts = facts_of(parse(caption))
                right, wrong = (verify(render(pair.scenes[s]), facts) for s in (side, 1 - side))
                told += all(right) and not all(wrong)
                asked += 1
    assert told / asked > 0.97  # the verifiers, who have no part in this, agree


def test_ranked_renders_are_reproducible_and_paired_with_their_captions() -> None:
    one, two = (ranked_renders("spatial", 6, np.random.default_rng(1), set()) for _ in range(2))
    assert np.array_equal(one.images, two.images)
    assert one.prompts == two.prompts
    assert one.pairs == two.pairs
    for better, worse, caption in one.pairs:
        facts = facts_of(parse(one.prompts[caption]))
        assert sum(verify(one.images[better], facts)) > sum(verify(one.images[worse], facts))
