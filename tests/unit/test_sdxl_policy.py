"""The SDXL adapter against the pipeline it wraps."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sharpening.checks import ModelFolderError
from sharpening.policies import family_of, load_policy
from sharpening.policies.base import Condition
from sharpening.policies.sdxl import SDXLPolicy
from sharpening.sampling import sample
from tests.conftest import build_pipeline

PROMPTS = ["a red circle", "two blue squares, left of 1 cross", ""]


def draw_noise(batch, seed=0):
    return torch.randn(batch, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("force_zeros", [True, False])
def test_sampler_draws_the_pipelines_images(guidance_scale, prediction_type, force_zeros):
    pipeline = build_pipeline(prediction_type)
    pipeline.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    policy = SDXLPolicy(pipeline)
    noise = draw_noise(3)
    arguments = {"latents": noise, "num_inference_steps": 7, "guidance_scale": guidance_scale}
    latents = pipeline(PROMPTS, output_type="latent", **arguments).images
    images = pipeline(PROMPTS, output_type="np", **arguments).images
    x0 = sample(policy, policy.encode(PROMPTS), noise, steps=7, guidance_scale=guidance_scale)
    torch.testing.assert_close(x0, latents, atol=1e-4, rtol=1e-5)
    decoded = policy.decode(x0)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (3, 64, 64, 3)
    expected = (images * 255).round()
    assert np.abs(decoded.astype(float) - expected).max() <= 1
    assert (decoded != expected).mean() < 1e-3
    assert decoded.std() > 10  # not a flat image
    assert np.array_equal(policy.decode(latents), expected)  # same latents: no level of difference


def test_guidance_and_prompt_change_the_images(policy):
    noise = draw_noise(1)
    plain, guided, other = (
        sample(policy, policy.encode([prompt]), noise, 4, scale)
        for prompt, scale in (("a red circle", 1.0), ("a red circle", 5.0), ("xyz", 1.0))
    )
    assert (plain - guided).abs().max() > 1e-2
    assert (plain - other).abs().max() > 1e-2


def test_pipeline_of_the_policy_is_the_policy(policy):
    noise = draw_noise(2)
    images = policy.pipeline()(
        PROMPTS[:2], latents=noise, num_inference_steps=5, guidance_scale=3.0, output_type="latent"
    ).images
    torch.testing.assert_close(sample(policy, policy.encode(PROMPTS[:2]), noise, 5, 3.0), images, atol=1e-4, rtol=1e-5)


def test_embedding_does_not_depend_on_its_batch(pipeline_folder):
    alone, together = load_policy(pipeline_folder), load_policy(pipeline_folder)
    batch = together.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        single = alone.encode([prompt])
        assert torch.equal(single.prompt_embeds[0], batch.prompt_embeds[row])
        assert torch.equal(single.pooled[0], batch.pooled[row])
    assert batch.time_ids.tolist() == [[64, 64, 0, 0, 64, 64]] * 3
    assert not torch.equal(batch.prompt_embeds[0], batch.prompt_embeds[1])


def test_cache_forgets_the_oldest(policy):
    policy = SDXLPolicy(policy.pipeline(), cache_size=2)
    calls = []
    policy._pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    policy.encode(["a", "b", "a"])
    assert len(calls) == 2
    policy.encode(["c", "a"])  # b is the oldest
    assert len(calls) == 3
    policy.encode(["a", "b"])
    assert len(calls) == 4


def test_nfe_counts_what_reaches_the_unet(policy):
    seen = []
    policy.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    condition = policy.encode(PROMPTS)
    x_t, t = draw_noise(3), torch.tensor([981, 500, 1])
    policy.predict(x_t, t, condition)
    assert (policy.nfe, sum(seen)) == (3, 3)
    policy.predict(x_t, t, condition, guidance_scale=4.0)
    assert (policy.nfe, sum(seen), len(seen)) == (9, 9, 2)  # guidance: both halves in one call
    sample(policy, condition, x_t, steps=5, guidance_scale=2.0)
    assert policy.nfe == sum(seen) == 9 + 5 * 6


def test_guided_prediction_is_the_extrapolation(policy):
    condition, x_t, t = policy.encode(PROMPTS), draw_noise(3), torch.tensor([700, 500, 1])
    positive = policy.predict(x_t, t, condition).eps
    negative = policy.predict(x_t, t, policy.uncondition(3)).eps
    guided = policy.predict(x_t, t, condition, guidance_scale=3.0)
    torch.testing.assert_close(guided.eps, negative + 3 * (positive - negative), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy.add_noise(guided.x0, guided.eps, t), x_t, atol=1e-4, rtol=1e-4)


def test_rows_at_different_timesteps_do_not_mix(policy):
    condition, x_t, t = policy.encode(PROMPTS), draw_noise(3), torch.tensor([981, 501, 1])
    together = policy.predict(x_t, t, condition)
    stepped = policy.step(x_t, t, policy.previous(t, 20), together)
    for row in range(3):
        only = slice(row, row + 1)
        single = policy.predict(x_t[only], t[only], condition.index([row]))
        torch.testing.assert_close(together.eps[only], single.eps, atol=1e-5, rtol=1e-5)
        step = policy.step(x_t[only], t[only], policy.previous(t[only], 20), single)
        torch.testing.assert_close(stepped[only], step, atol=1e-4, rtol=1e-4)


def test_implied_noise_undoes_add_noise(policy):
    x0, eps, t = draw_noise(3, 1), draw_noise(3, 2), torch.tensor([981, 501, 41])
    torch.testing.assert_close(policy.target_noise(policy.add_noise(x0, eps, t), x0, t), eps, atol=1e-4, rtol=1e-4)


def test_splitting_large_batches_changes_nothing_but_rounding(policy):
    condition, x_t, t = policy.encode(PROMPTS), draw_noise(3), torch.tensor([981, 501, 1])
    whole, images = policy.predict(x_t, t, condition).eps, policy.decode(x_t)
    policy.max_batch, policy.decode_batch = 2, 1
    with torch.no_grad():
        torch.testing.assert_close(policy.predict(x_t, t, condition).eps, whole, atol=1e-5, rtol=1e-5)
    assert np.abs(policy.decode(x_t).astype(int) - images).max() <= 1


def test_frozen_copy_keeps_its_weights_and_shares_the_rest(policy):
    reference = policy.frozen_copy()
    before = reference.trainable_state()
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(0.1)
    assert all(torch.equal(value, reference.trainable_state()[name]) for name, value in before.items())
    assert reference.vae is policy.vae
    assert reference._pipeline is policy._pipeline
    assert not any(parameter.requires_grad for parameter in reference.denoiser.parameters())
    policy.predict(draw_noise(1), torch.tensor([1]), policy.encode(["a"]))
    assert (policy.nfe, reference.nfe) == (1, 0)


def test_weights_travel(policy):
    state = policy.trainable_state()
    other = policy.frozen_copy()
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(0.01)
    snapshot = policy.trainable_state()
    assert not any(torch.equal(state[name], snapshot[name]) for name in state)  # a copy, not a view
    other.load_trainable_state(snapshot)
    assert all(torch.equal(value, snapshot[name]) for name, value in other.trainable_state().items())
    with pytest.raises(ValueError, match="another UNet"):
        other.load_trainable_state({"conv_in.weight": torch.zeros(1)})


def test_saved_pipeline_loads_without_us_and_draws_the_same(policy, tmp_path):
    with torch.no_grad():
        policy.denoiser.conv_out.bias.add_(0.2)
    policy.save_pretrained(tmp_path / "out")
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    noise = draw_noise(1)
    latents = pipeline(
        ["a red circle"], latents=noise, num_inference_steps=4, guidance_scale=1.0, output_type="latent"
    ).images
    x0 = sample(policy, policy.encode(["a red circle"]), noise, 4)
    torch.testing.assert_close(x0, latents, atol=1e-4, rtol=1e-5)


def test_condition_rows(policy):
    condition = policy.encode(PROMPTS)
    twice = condition.repeat_interleave(2)
    assert len(twice) == 6
    assert torch.equal(twice.pooled[3], condition.pooled[1])
    picked = condition.index(torch.tensor([2, 0]))
    assert torch.equal(picked.prompt_embeds, condition.prompt_embeds[[2, 0]])
    joined = Condition.cat([picked, condition])
    assert torch.equal(joined.pooled[2:], condition.pooled)


def broken_copy(source, target):
    shutil.copytree(source, target)
    return target


def test_unusable_folders_are_named(pipeline_folder, tmp_path):
    assert family_of(pipeline_folder) == "sdxl"
    with pytest.raises(ModelFolderError, match="no folder"):
        load_policy(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError, match="model_index.json"):
        load_policy(tmp_path / "empty")

    truncated = broken_copy(pipeline_folder, tmp_path / "truncated")
    weights = truncated / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match="truncated"):
        load_policy(truncated)
    weights.write_bytes(b"")
    with pytest.raises(ModelFolderError, match="truncated"):
        load_policy(truncated)
    weights.unlink()
    with pytest.raises(ModelFolderError, match="no weights"):
        load_policy(truncated)

    partial = broken_copy(pipeline_folder, tmp_path / "partial")
    shutil.rmtree(partial / "vae")
    with pytest.raises(ModelFolderError, match="vae is missing"):
        load_policy(partial)

    foreign = broken_copy(pipeline_folder, tmp_path / "foreign")
    index = json.loads((foreign / "model_index.json").read_text())
    (foreign / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))
    with pytest.raises(ModelFolderError, match=r"KandinskyPipeline; pass a folder of .*StableDiffusionXLPipeline"):
        load_policy(foreign)

    unconfigured = broken_copy(pipeline_folder, tmp_path / "unconfigured")
    (unconfigured / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="not valid JSON"):
        load_policy(unconfigured)
