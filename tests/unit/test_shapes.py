"""The embedded world: scenes, captions, benchmark, verifiers."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from scipy import ndimage

from sharpening.shapes.benchmark import benchmark, caption_for, draw_benchmark, training_scene, validation_benchmark
from sharpening.shapes.captions import CATEGORIES, Claims, Fact, ThingClaim, claims_about, corrupt, facts_of, say
from sharpening.shapes.render import render
from sharpening.shapes.scene import BACKGROUNDS, COLOURS, Scene, Thing, held_out, random_scene
from sharpening.shapes.verifiers import look, verify


def scene_and_claims(rng: np.random.Generator, category: str):
    while True:
        scene = random_scene(rng)
        claims = claims_about(scene, rng, category)
        if claims is not None:
            return scene, claims


def accuracy(category: str, count: int, degrade=lambda image: image, seed: int = 0) -> tuple[float, float]:
    """Share of true prompts found fully right, and share of near misses found fully right."""
    rng = np.random.default_rng([seed, CATEGORIES.index(category)])
    right = wrong = 0
    for _ in range(count):
        scene, claims = scene_and_claims(rng, category)
        image = degrade(render(scene))
        right += all(verify(image, facts_of(claims)))
        wrong += all(verify(image, facts_of(corrupt(claims, rng))))
    return right / count, wrong / count


@pytest.mark.parametrize("category", CATEGORIES)
def test_verifiers_agree_with_clean_renders(category):
    right, wrong = accuracy(category, 200)
    assert right >= 0.99
    assert wrong <= 0.01


def test_verifiers_degrade_gracefully(capsys):
    rng = np.random.default_rng(0)
    blur = lambda image: ndimage.gaussian_filter(image.astype(float), (0.8, 0.8, 0)).astype(np.uint8)  # noqa: E731
    noise = lambda image: np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)  # noqa: E731
    report = defaultdict(dict)
    for category in CATEGORIES:
        report["blurred"][category] = accuracy(category, 30, blur)
        report["noisy"][category] = accuracy(category, 30, noise)
    with capsys.disabled():
        for name, rows in report.items():
            print(f"\nverifiers on {name} renders (right, near miss accepted):", dict(rows))
    for rows in report.values():
        assert np.mean([right for right, _ in rows.values()]) >= 0.85
        assert np.mean([wrong for _, wrong in rows.values()]) <= 0.02


def test_a_picture_is_named_as_it_was_drawn():
    scene = Scene(
        (Thing("circle", "red", "striped", 16, 32, 12.0), Thing("cross", "blue", "plain", 48, 30, 8.0)), "white"
    )
    background, found = look(render(scene))
    assert background == "white"
    assert [(f.shape, f.colour, f.texture) for f in found] == [("circle", "red", "striped"), ("cross", "blue", "plain")]
    assert abs(found[0].x - 15.5) < 0.5
    assert abs(found[0].y - 31.5) < 0.5


def test_facts_are_judged_one_by_one():
    scene = Scene(
        (Thing("circle", "red", "plain", 16, 32, 12.0), Thing("square", "blue", "plain", 48, 32, 8.0)), "black"
    )
    image = render(scene)
    facts = (
        Fact("shape", 0, "circle"),
        Fact("colour", 0, "green"),
        Fact("shape", 1, "square"),
        Fact("colour", 1, "blue"),
        Fact("relation", 0, "right of"),
        Fact("larger", 0, "yes"),
        Fact("count", 0, "2"),
        Fact("background", 0, "black"),
    )
    assert verify(image, facts) == (True, False, True, True, False, True, True, True)


def test_swapped_colours_are_not_fully_right():
    scene = Scene(
        (Thing("circle", "red", "plain", 16, 32, 12.0), Thing("square", "blue", "plain", 48, 32, 12.0)), "grey"
    )
    swapped = Claims((ThingClaim("circle", "blue"), ThingClaim("square", "red")))
    answers = verify(render(scene), facts_of(swapped))
    assert sum(answers) == 2  # either the shapes hold or the colours do, never both


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_has_no_things(value):
    image = np.full((64, 64, 3), value, np.uint8)
    assert look(image)[1] == []
    assert verify(image, (Fact("shape", 0, "circle"), Fact("count", 0, "2"))) == (False, False)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"64, 64, 3"):
        verify(np.zeros((32, 32, 3), np.uint8), ())


def test_the_benchmark_has_a_hundred_distinct_prompts_a_category():
    prompts = benchmark()
    assert [sum(p.category == c for p in prompts) for c in CATEGORIES] == [100] * 6
    assert len({p.prompt for p in prompts}) == 600
    assert {p.prompt for p in prompts}.isdisjoint(p.prompt for p in validation_benchmark())
    assert prompts == draw_benchmark(seed=600, per_category=100)


def test_training_shows_no_benchmark_prompt_and_no_held_out_combination():
    excluded = {p.prompt for p in benchmark()}
    rng = np.random.default_rng(0)
    for _ in range(1500):
        scene = training_scene(rng)
        assert not held_out(scene)
        assert caption_for(scene, rng, excluded)[0] not in excluded
    # The exclusion has something to do: without it some captions would be benchmark prompts.
    assert any(caption_for(training_scene(rng), rng, set())[0] in excluded for _ in range(1500))


def test_some_combinations_are_held_out_but_not_most():
    rng = np.random.default_rng(1)
    assert 0.1 < np.mean([held_out(random_scene(rng)) for _ in range(1000)]) < 0.3


def test_captions_are_true_and_near_misses_are_not():
    rng = np.random.default_rng(2)
    for _ in range(150):
        scene = random_scene(rng)
        claims = claims_about(scene, rng)
        image = render(scene)
        wrong = corrupt(claims, rng)
        assert wrong != claims
        assert np.mean(verify(image, facts_of(claims))) > 0.7
        assert say(claims, rng)
        assert say(wrong, rng)


def test_things_do_not_touch_and_stay_inside():
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = random_scene(rng)
        image = render(scene).astype(int)
        background = np.array(BACKGROUNDS[scene.background])
        labels, count = ndimage.label((np.abs(image - background).sum(-1) > 12), structure=np.ones((3, 3)))
        # Dark stripes on black may part a thing, so bright pixels alone would miscount: at least one region a thing.
        assert count >= len(scene.things)


def test_rendering_is_a_function_of_the_scene():
    scene = random_scene(np.random.default_rng(4))
    assert np.array_equal(render(scene), render(scene))
    plain = Scene((Thing("square", "green", "plain", 32, 32, 10.0),), "black")
    image = render(plain)
    assert tuple(image[32, 32]) == COLOURS["green"]
    assert tuple(image[2, 2]) == BACKGROUNDS["black"]
