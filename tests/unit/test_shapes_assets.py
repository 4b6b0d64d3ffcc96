"""The shipped models: they load with their own libraries, and are as good as the documentation says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sharpening.policies import load_policy
from sharpening.rewards.clip import ClipScorer
from sharpening.sampling import sample
from sharpening.seeds import noise
from sharpening.shapes.assets import clip_folder, pipeline_folder, training_prompts, validation_benchmark
from sharpening.shapes.benchmark import benchmark, caption_for, training_scene
from sharpening.shapes.captions import claims_about, corrupt, facts_of, say
from sharpening.shapes.render import render
from sharpening.shapes.scene import random_scene
from sharpening.shapes.train_vae import to_unit
from sharpening.shapes.verifiers import look, verify


@pytest.fixture(scope="module")
def policy():
    return load_policy(pipeline_folder())


@pytest.fixture(scope="module")
def scorer():
    return ClipScorer(str(clip_folder()))


def test_files_are_safetensors_of_a_few_megabytes():
    for folder in (pipeline_folder(), clip_folder()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
        assert sum(path.stat().st_size for path in files) < 30e6
        assert not any("_name_or_path" in path.read_text() for path in files if path.suffix == ".json")
    assert (
        json.loads((pipeline_folder() / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    )


def test_training_prompts_are_disjoint_from_both_benchmarks():
    prompts = training_prompts()
    assert len(set(prompts)) == len(prompts) == 4000
    assert {p.prompt for p in benchmark() + validation_benchmark()}.isdisjoint(prompts)


@torch.no_grad()
def test_the_vae_keeps_colour_shape_texture_and_place(policy):
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(48)]
    images = np.stack([render(scene) for scene in scenes])
    latents = policy.vae.encode(to_unit(images)).latent_dist.mean * policy.vae.config.scaling_factor
    assert 0.7 < latents.std().item() < 1.4
    right = total = 0
    for scene, image in zip(scenes, policy.decode(latents), strict=True):
        _, found = look(image)
        for thing in scene.things:
            nearest = min(found, key=lambda f: (f.x - thing.x) ** 2 + (f.y - thing.y) ** 2, default=None)
            named = nearest and (nearest.shape, nearest.colour, nearest.texture)
            right += named == (thing.shape, thing.colour, thing.texture)
            total += 1
    assert right / total > 0.97


def test_clip_tells_captions_from_near_misses(scorer):
    rng = np.random.default_rng(1)
    scenes = [training_scene(rng) for _ in range(96)]
    images = np.stack([render(scene) for scene in scenes])
    claims = [caption_for(scene, rng, set()) for scene in scenes]
    right = scorer(images, [text for text, _ in claims]).values
    wrong = scorer(images, [say(corrupt(claim, rng), rng) for _, claim in claims]).values
    other = scorer(images, [text for text, _ in claims[1:] + claims[:1]]).values
    assert (right > wrong).mean() > 0.85
    assert (right > other).mean() > 0.95


@torch.no_grad()
def test_the_base_draws_what_the_caption_asks_with_room_to_improve(policy):
    prompts = validation_benchmark()[::6]
    initial = torch.stack([noise(policy.latent_shape, 0, "test", i) for i in range(len(prompts))])
    images = policy.decode(sample(policy, policy.encode([p.prompt for p in prompts]), initial, 20, 3.0))
    answers = [verify(image, p.facts) for image, p in zip(images, prompts, strict=True)]
    facts = np.mean([np.mean(a) for a in answers])
    assert 0.55 < facts < 0.98
    # Another prompt's facts hold far less often: the pictures follow their own captions.
    shuffled = [verify(image, p.facts) for image, p in zip(images, prompts[7:] + prompts[:7], strict=True)]
    assert facts - np.mean([np.mean(a) for a in shuffled]) > 0.2


def test_claims_about_scenes_cover_every_category():
    rng = np.random.default_rng(2)
    scene = next(s for s in iter(lambda: random_scene(rng), None) if len(s.things) == 2)
    assert facts_of(claims_about(scene, rng, "spatial") or claims_about(scene, rng))
