"""Every model family's adapter against the diffusers pipeline that it adapts."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FluxPipeline
from torch import nn

from sharpening.checks import ModelFolderError
from sharpening.data.source import Batch
from sharpening.methods import load_method
from sharpening.methods.base import Seeds
from sharpening.policies import FAMILIES, family_of, guidance_of, load_policy, native_resolution, resolution_steps
from sharpening.policies.base import Prediction
from sharpening.policies.flux import pack, unpack
from sharpening.sampling import sample
from sharpening.search import load_search
from sharpening.search.base import SearchOptions, SearchSeeds
from sharpening.search.demon import exact_step, heun_step
from sharpening.search.session import CLEAN, Session
from tests import tiny_pipelines
from tests.conftest import fresh_policy
from tests.tiny_pipelines import BUILDERS, CHANNELS, SIDE

NAMES = list(BUILDERS)
FLOWS = ["sd3", "flux-dev"]
PROMPTS = ["a red circle", "two blue squares", ""]
SHAPE = (CHANNELS, SIDE, SIDE)
BUCKET = (CHANNELS, SIDE + 4, SIDE)
"""Latents of an aspect bucket: 24 × 16 pixels."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One pipeline folder a name; do not change them."""
    root = tmp_path_factory.mktemp("families")
    for name in NAMES:
        tiny_pipelines.build(name).save_pretrained(root / name)
    return {name: root / name for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def policy(folders, name):
    return fresh_policy(folders[name])


def draw(batch, seed=0, shape=SHAPE):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def call_arguments(name, noise):
    """What a pipeline is called with to draw from given noise at the noise's size."""
    size = {"height": 2 * noise.shape[2], "width": 2 * noise.shape[3]}
    if name.startswith("flux"):
        return {"latents": FluxPipeline._pack_latents(noise, len(noise), *noise.shape[1:]), **size}
    return {"latents": noise, **size} | ({"use_resolution_binning": False} if name == "pixart" else {})


def scales(name):
    return [1.0] if name == "flux-schnell" else [1.0, 4.0]


# -- the sampler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, BUCKET])
def test_the_sampler_draws_the_pipelines_images(folders, name, policy, shape):
    whole, policy, noise = policy, policy.shaped(*shape[1:]), draw(3, shape=shape)
    pipeline = DiffusionPipeline.from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    if name == "pixart":  # which comes with another solver
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    drawn = {}
    for scale in scales(name):
        arguments = {"num_inference_steps": 5, "guidance_scale": scale} | call_arguments(name, noise)
        latents = pipeline(PROMPTS, output_type="latent", **arguments).images
        if name.startswith("flux"):
            latents = FluxPipeline._unpack_latents(latents, 2 * shape[1], 2 * shape[2], 2)
        x0 = drawn[scale] = sample(policy, policy.encode(PROMPTS), noise, 5, scale)
        torch.testing.assert_close(x0, latents, atol=1e-4, rtol=1e-4)
        expected = np.round(pipeline(PROMPTS, output_type="np", **arguments).images * 255)
        assert np.abs(policy.decode(x0) - expected).max() <= 1
        assert expected.std() > 5  # no flat image
    assert len(drawn) == 1 or (drawn[1.0] - drawn[4.0]).abs().max() > 1e-3
    assert (drawn[1.0][0] - drawn[1.0][2]).abs().max() > 1e-3
    assert whole.nfe == policy.nfe > 0  # what is drawn in any shape is counted
    whole.nfe = 7
    assert whole.frozen_copy().nfe == 0
    assert whole.latent_shape == SHAPE


def test_the_pipeline_that_is_handed_back_draws_them_too(name, policy):
    scale = scales(name)[-1]
    arguments = {"num_inference_steps": 4, "guidance_scale": scale} | call_arguments(name, draw(2))
    images = policy.pipeline()(PROMPTS[:2], output_type="np", **arguments).images
    found = policy.decode(sample(policy, policy.encode(PROMPTS[:2]), draw(2), 4, scale))
    assert np.abs(found - np.round(images * 255)).max() <= 1


def test_predictions_are_two_readings_of_one_answer(name, policy):
    condition, x_t = policy.encode(PROMPTS), draw(3)
    t = policy.timesteps(5)[[0, 2, 4]]
    prediction = policy.predict(x_t, t, condition)
    torch.testing.assert_close(policy.add_noise(prediction.x0, prediction.eps, t), x_t, atol=1e-4, rtol=1e-4)
    for row in range(3):  # rows at other timesteps and other prompts do not mix
        alone = policy.predict(x_t[row, None], t[row, None], condition.index([row]))
        torch.testing.assert_close(alone.eps[0], prediction.eps[row], atol=1e-5, rtol=1e-4)
    seen = []
    handle = policy.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    policy.nfe, policy.max_batch = 0, 2
    with torch.no_grad():
        guided = policy.predict(x_t, t, condition, scales(name)[-1])
    handle.remove()
    assert policy.nfe == sum(seen) == 3 * policy.prediction_nfe(scales(name)[-1])
    assert max(seen) == 2
    if policy.prediction_nfe(scales(name)[-1]) == 2:
        negative = policy.predict(x_t, t, policy.uncondition(3)).eps
        torch.testing.assert_close(guided.eps, negative + 4 * (prediction.eps - negative), atol=1e-3, rtol=1e-4)


def test_images_go_through_the_vae_and_back(policy):
    images = policy.decode(draw(2))
    assert images.shape == (2, 2 * SIDE, 2 * SIDE, 3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = policy.vae.encode(pixels).latent_dist.mean
    config = policy.vae.config
    expected = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
    torch.testing.assert_close(policy.encode_images(images), expected, atol=1e-5, rtol=1e-5)


# -- learning --------------------------------------------------------------------------------------------------------


def others(policy):
    parts = policy._pipeline.components.items()
    return [module for name, module in parts if isinstance(module, nn.Module) and name != policy.part]


def test_gradients_flow_to_the_denoiser_only(policy):
    policy.denoiser.requires_grad_(True)
    prediction = policy.predict(draw(2), policy.timesteps(5)[[1, 3]], policy.encode(PROMPTS[:2]))
    (prediction.eps.square().mean() + policy.pixels(prediction.x0).mean()).backward()
    assert len(others(policy)) >= 2
    for module in others(policy):
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    gradients = [p.grad for p in policy.denoiser.parameters()]
    reached = [g for g in gradients if g is not None and g.abs().sum() > 0]
    assert len(reached) > 0.9 * len(gradients)
    assert all(g.isfinite().all() for g in reached)


@pytest.mark.parametrize(
    ("method", "shape"),
    [("rlhf", SHAPE), ("sft", SHAPE), ("dpo", SHAPE), ("standard", BUCKET), ("sft", BUCKET), ("dpo", BUCKET)],
)
def test_three_updates_lower_the_loss_on_a_fixed_batch(policy, brightness, method, shape):
    bucket = policy.shaped(*shape[1:])
    images = [bucket.decode(draw(2, seed, shape)) for seed in (0, 1)]
    images = np.stack(images, axis=1)  # two a prompt, the better one first
    options, images = {
        "rlhf": ({"rollout_steps": 4, "branches": 2, "timesteps_per_rollout": 2}, images[:, :0]),
        "sft": ({"rollout_steps": 4, "branches": 2, "timesteps_per_image": 2}, images[:, :1]),
        "standard": ({"timesteps_per_image": 2}, images[:, :1]),
        "dpo": ({"timesteps_per_pair": 2}, images),
    }[method]
    batch = Batch(PROMPTS[:2], images)
    learning = load_method(method, type(load_method(method).options)(**options))
    experience = learning.collect(policy, policy.frozen_copy(), brightness, batch, Seeds(0, 0, (0, 1)))
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters(), lr=1e-3)
    values = []
    for _ in range(4):
        value = learning.loss(policy, experience).value
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[3] < values[0], values
    assert np.isfinite(values).all()
    assert experience.x_t.shape[-3:] == shape
    assert learning.loss(bucket, experience).value == learning.loss(policy, experience).value
    if method == "dpo":  # which begins where policy and reference say the same, at the same noise levels
        assert values[0] == pytest.approx(np.log(2), abs=1e-5)
        t = experience.timesteps[:, 0]
        x0 = bucket.encode_images(images.reshape(-1, *images.shape[2:])).unflatten(0, (2, 2))
        alpha, sigma = (level.float().view(-1, 1, 1, 1, 1) for level in bucket.levels(t))
        expected = alpha * x0.repeat_interleave(2, 0) + sigma * experience.target[:, :, 0]
        torch.testing.assert_close(experience.x_t[:, :, 0], expected, atol=1e-5, rtol=1e-5)


# -- saving ----------------------------------------------------------------------------------------------------------

LOADER = """
import json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline
for name, arguments in json.loads(sys.argv[1]).items():
    arguments["latents"] = torch.from_numpy(np.load(f"{name}.noise.npy"))
    pipeline = DiffusionPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)
    np.save(f"{name}.images.npy", pipeline("a red circle", output_type="np", **arguments).images)
assert not [module for module in sys.modules if module.startswith("sharpening")]
"""


@pytest.fixture(scope="module")
def drawn_elsewhere(folders, tmp_path_factory):
    """Changed weights saved, and the images that a process with nothing but diffusers draws of them, beside ours."""
    root, calls, ours = tmp_path_factory.mktemp("saved"), {}, {}
    for name in NAMES:
        policy, scale = load_policy(folders[name]), scales(name)[-1]
        with torch.no_grad():
            for parameter in policy.denoiser.parameters():
                parameter.add_(0.02)
        policy.save_pretrained(root / name)
        calls[name] = {"num_inference_steps": 4, "guidance_scale": scale} | call_arguments(name, draw(1))
        np.save(root / f"{name}.noise.npy", calls[name].pop("latents").numpy())
        ours[name] = policy.decode(sample(policy, policy.encode(["a red circle"]), draw(1), 4, scale))
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADER, json.dumps(calls)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (ours[name], np.load(root / f"{name}.images.npy")) for name in NAMES}


def test_a_saved_model_draws_the_same_without_us(folders, name, drawn_elsewhere):
    ours, theirs = drawn_elsewhere[name]
    assert np.abs(ours - np.round(theirs * 255)).max() <= 1
    policy = load_policy(folders[name])
    before = policy.decode(sample(policy, policy.encode(["a red circle"]), draw(1), 4, scales(name)[-1]))
    assert np.abs(before.astype(int) - ours).max() > 1  # the change was saved


# -- searches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["random", "zero_order", "paths", "demon", "free2guide", "fk_steering"])
@pytest.mark.parametrize("flow", FLOWS)
def test_searches_run_on_flows(folders, brightness, search, flow):
    policy, steps, budget = load_policy(folders[flow]), 4, 24
    guidance_scale = 3.0 if flow == "flux-dev" else 1.0  # told, not paired: a prediction is one evaluation
    options = {"steps": steps, "guidance_scale": guidance_scale}
    result = load_search(search, **options).search(policy, brightness, PROMPTS[:2], budget, SearchSeeds(3, (0, 1)))
    plain = load_search("random", **options).search(policy, brightness, PROMPTS[:2], steps, SearchSeeds(3, (0, 1)))
    assert plain.nfe == 2 * steps
    assert budget - steps < result.nfe / 2 <= budget
    assert not result.failures
    assert (result.rewards >= plain.rewards - (0 if search in ("random", "zero_order") else 5)).all()
    np.testing.assert_allclose(brightness(result.images, PROMPTS[:2]).values, result.rewards, rtol=1e-6)


@pytest.mark.parametrize("flow", FLOWS)
def test_demons_steps_on_a_flow_by_hand(folders, brightness, flow):
    """In Karras' coordinates, x / (1 − σ) at noise level σ / (1 − σ)."""
    policy = load_policy(folders[flow])
    session = Session(policy, brightness, PROMPTS[:1], 100, SearchSeeds(0, (0,)), SearchOptions(steps=4))
    (first, t, t_next), beta = session.times[:3], 0.3
    flow_level = [float(policy.schedule.sigma(torch.tensor(time))) for time in (t, t_next)]
    alpha, alpha_next = (1 - sigma for sigma in flow_level)
    sigma, sigma_next = (level / (1 - level) for level in flow_level)
    x, z = draw(1, seed=1), draw(1, seed=2)
    prediction = Prediction(eps=draw(1, seed=3), x0=draw(1, seed=4))
    keep = np.exp(-beta * (sigma - sigma_next))
    expected = alpha_next * (prediction.x0 + sigma_next * (keep * prediction.eps + np.sqrt(1 - keep**2) * z))
    torch.testing.assert_close(exact_step(session, x, (t, t_next), prediction, beta, z), expected, atol=1e-4, rtol=1e-4)
    # From pure noise, σ = ∞, nothing of the old noise is kept; Heun's slope does not exist there.
    noise_level = float(policy.schedule.sigma(torch.tensor(t)))
    expected = (1 - noise_level) * prediction.x0 + noise_level * z
    for step in (exact_step, heun_step):
        found = step(session, x, (first, t), prediction, beta, z)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        mixed = (sigma - sigma_next) ** 0.5 * (2 * beta) ** 0.5 * z
        slope = (1 + beta * sigma) * prediction.eps
        euler = x / alpha + (sigma_next - sigma) * slope + sigma * mixed
        slope_next = (1 + beta * sigma_next) * session.predict(alpha_next * euler, t_next).eps
        expected = x / alpha + (sigma_next - sigma) * (slope + slope_next) / 2 + (sigma + sigma_next) / 2 * mixed
        found = heun_step(session, x, (t, t_next), prediction, beta, z)
    torch.testing.assert_close(found, alpha_next * expected, atol=1e-4, rtol=1e-4)
    assert session.times[-1] == CLEAN


# -- what is particular to a family ----------------------------------------------------------------------------------


def test_flux_is_told_the_guidance_and_schnell_refuses_it(folders):
    told, none = load_policy(folders["flux-dev"]), load_policy(folders["flux-schnell"])
    seen = []
    told.denoiser.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["guidance"]), with_kwargs=True)
    arguments = draw(2), told.timesteps(4)[:2], told.encode(PROMPTS[:2])
    predictions = [told.predict(*arguments, scale).x0 for scale in (1.0, 3.5)]
    assert [g.tolist() for g in seen] == [[1.0, 1.0], [3.5, 3.5]]
    assert told.nfe == 4
    assert (predictions[0] - predictions[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="knows no guidance scale"):
        none.predict(*arguments, 3.5)
    kinds = {"flux-dev": "told", "flux-schnell": "none", "sd3": "pair", "sdxl": "pair"}
    assert {name: guidance_of(folders[name]) for name in kinds} == kinds


def test_packing_is_the_pipelines():
    x = torch.randn(2, CHANNELS, 4, 6)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, CHANNELS, 4, 6))
    assert torch.equal(unpack(pack(x), 4, 6), x)


def test_pixart_tells_padding_from_prompt(folders):
    policy = load_policy(folders["pixart"])
    condition = policy.encode(PROMPTS)
    # ▁a ▁r e d ▁c i r c l e, ▁ t w o ▁b l u e ▁ s q u a r e s, and nothing; each with the end's token.
    assert condition.mask.sum(1).tolist() == [11, 17, 1]
    assert condition.to("cpu", torch.bfloat16).mask.dtype == torch.int64
    blind = type(condition)(condition.prompt_embeds, mask=torch.ones_like(condition.mask))
    arguments = draw(3), policy.timesteps(4)[:3]
    assert (policy.predict(*arguments, condition).eps - policy.predict(*arguments, blind).eps).abs().max() > 1e-4


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_vae_that_overflows_in_half_precision_stays_in_single(folders, tmp_path, force_upcast):
    pipeline = DiffusionPipeline.from_pretrained(folders["sdxl"])
    pipeline.vae.register_to_config(force_upcast=force_upcast)
    pipeline.save_pretrained(tmp_path)
    for dtype in (torch.float16, torch.bfloat16):
        policy = load_policy(tmp_path, dtype=dtype)
        kept = force_upcast and dtype == torch.float16
        assert policy.vae.dtype == (torch.float32 if kept else dtype)
        assert policy.denoiser.dtype == policy._pipeline.text_encoder_2.dtype == dtype
    if not force_upcast:
        return
    exact, half = load_policy(tmp_path), load_policy(tmp_path, dtype=torch.float16)
    assert np.array_equal(half.decode(draw(2)), exact.decode(draw(2)))  # nothing lost on the way through float16
    assert half.encode_images(exact.decode(draw(2))).dtype == torch.float32


def test_families_are_recognised_and_others_told_what_there_is(folders, tmp_path):
    found = {name: family_of(folders[name]) for name in NAMES}
    assert set(found.values()) == set(FAMILIES.values())
    assert all(name.startswith(family) for name, family in found.items())
    assert {native_resolution(folder) for folder in folders.values()} == {2 * SIDE}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(ModelFolderError) as error:
        load_policy(tmp_path)
    assert all(name in str(error.value) for name in ["KandinskyPipeline", *FAMILIES])
    assert native_resolution(tmp_path) is None


def test_another_resolution(folders):
    for name in ("sdxl", "sd3", "flux-dev"):
        policy = load_policy(folders[name], resolution=12)
        assert policy.latent_shape == (CHANNELS, 6, 6)
        noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        condition = policy.encode(PROMPTS[:1])
        images = policy.decode(sample(policy, condition, noise, 2))
        assert images.shape == (1, 12, 12, 3)
    with pytest.raises(ValueError, match="multiple of 4"):
        load_policy(folders["flux-dev"], resolution=10)
    with pytest.raises(ValueError, match=f"pass at most {4 * SIDE}"):
        load_policy(folders["sd3"], resolution=4 * SIDE + 4)
    sdxl = load_policy(folders["sdxl"], resolution=12)
    assert sdxl.encode([""]).time_ids.tolist() == [[12, 12, 0, 0, 12, 12]]
    bucket = sdxl.shaped(12, 8)
    assert bucket.size == (24, 16)
    for condition in (bucket.encode(["", "a"]), bucket.uncondition(2)):
        assert condition.time_ids.tolist() == [[24, 16, 0, 0, 24, 16]] * 2
    assert sdxl.encode([""]).time_ids.tolist() == [[12, 12, 0, 0, 12, 12]]
    with pytest.raises(ValueError, match="draws no 6 × 16 pixels; pass a multiple of 4"):
        load_policy(folders["flux-dev"]).shaped(3, 8)
    with pytest.raises(ValueError, match=f"draws no {4 * SIDE + 4} × 16 pixels; pass at most {4 * SIDE}"):
        load_policy(folders["sd3"]).shaped(2 * SIDE + 2, 8)
    with pytest.raises(ValueError, match="pass a multiple of 4"):
        load_policy(folders["pixart"]).encode_images(np.zeros((1, 16, 18, 3), np.uint8))


def test_resolutions_that_a_folder_says_are_those_that_its_policy_takes(folders, policy, name):
    step, largest = resolution_steps(folders[name])
    assert step == policy.patch * policy.pipeline().vae_scale_factor
    assert largest == (4 * SIDE if name.startswith("sd3") else None)


def test_another_vae_takes_the_place_of_the_pipelines_own(folders, tmp_path):
    """Decoding and encoding are that VAE's, by diffusers alone; it is saved with the pipeline."""
    torch.manual_seed(7)
    other = tiny_pipelines.vae(scaling_factor=0.5).eval()
    other.save_pretrained(tmp_path / "vae")
    own, policy = (load_policy(folders["sdxl"], vae=vae) for vae in (None, tmp_path / "vae"))
    latents, images = draw(2), np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        decoded = (other.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        encoded = other.encode(pixels).latent_dist.mean * 0.5
    assert torch.allclose(policy.pixels(latents), decoded, atol=1e-6)
    assert not torch.allclose(own.pixels(latents), decoded, atol=1e-2)
    assert torch.allclose(policy.encode_images(images), encoded, atol=1e-6)
    policy.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved").vae
    assert again.config.scaling_factor == 0.5
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values(), strict=True))
    flux = load_policy(folders["flux-dev"], vae=tmp_path / "vae")
    assert flux.latent_shape == SHAPE
    assert load_policy(folders["sdxl"], dtype=torch.bfloat16, vae=tmp_path / "vae").vae.dtype == torch.bfloat16


def test_a_vae_that_does_not_fit_is_refused(folders, tmp_path):
    wide = {"latent_channels": 2 * CHANNELS, "block_out_channels": [8, 16]}
    for config, says in [
        (
            wide,
            f"latents of {2 * CHANNELS} channels at 1/2 of the pixels, but the model's have {CHANNELS} at 1/2; pass",
        ),
        (wide | {"latent_channels": CHANNELS, "block_out_channels": [8, 16, 16]}, "at 1/4 of the pixels"),
        (wide | {"_class_name": "AutoencoderTiny"}, "holds a AutoencoderTiny, no AutoencoderKL"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(
            (folders["sdxl"] / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
        )
        with pytest.raises(ModelFolderError) as error:
            load_policy(folders["sdxl"], vae=tmp_path)
        assert says in str(error.value)
    (tmp_path / "config.json").write_bytes((folders["sdxl"] / "vae" / "config.json").read_bytes())
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="has no weights"):
        load_policy(folders["sdxl"], vae=tmp_path)


def test_consistency_models_are_refused(folders):
    pipeline = DiffusionPipeline.from_pretrained(folders["sd-epsilon"])
    pipeline.unet.register_to_config(time_cond_proj_dim=8)
    policy = load_policy(folders["sd-epsilon"])
    with pytest.raises(ValueError, match="consistency"):
        type(policy)(pipeline)
