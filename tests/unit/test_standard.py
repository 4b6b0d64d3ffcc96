"""Standard fine-tuning, and what it shares with the other methods that learn from given images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import Batch
from sharpening.methods import METHODS, load_method, options_class
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.standard import StandardFineTuning
from sharpening.methods.states import drop_prompts
from sharpening.options import OptionError
from sharpening.options.standard import StandardOptions
from sharpening.seeds import generator, noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64, 3), dtype=np.uint8)
OPTIONS = StandardOptions(timesteps_per_image=3)


def unasked(images, prompts):
    raise AssertionError("the reward was asked")


def collect(policy, options=OPTIONS, slots=(0, 1, 2, 3), update=5):
    batch = Batch([PROMPTS[slot] for slot in slots], IMAGES[list(slots)])
    return StandardFineTuning(options).collect(policy, policy, unasked, batch, Seeds(11, update, slots))


def assert_same(first, second, tolerance=0.0):
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        torch.testing.assert_close(value, second.tensors()[name], atol=tolerance, rtol=tolerance, msg=name)


def test_registered_with_its_options():
    assert METHODS["standard"][0].endswith("StandardFineTuning")
    assert isinstance(load_method("standard"), StandardFineTuning)
    options = options_class("standard")(timesteps_per_image=5)
    assert (options.data, options.rewarded, options.groups_per_prompt) == ("images", False, 5)


def test_states_by_hand(policy):
    """x_t from the VAE, diffusers' own scheduler and the seeds."""
    experience = collect(policy, replace(OPTIONS, proportion_empty_prompts=0.0))
    assert experience.x_t.shape == (12, 1, 1, 8, 8, 8)
    pipeline = policy._pipeline
    for g in range(12):
        slot, k = divmod(g, 3)
        pixels = torch.from_numpy(IMAGES[slot].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            x0 = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        eps = noise((8, 8, 8), 11, "noise", 5, slot, k)
        x_t = pipeline.scheduler.add_noise(x0, eps[None], experience.timesteps[g])
        torch.testing.assert_close(experience.x_t[g, 0], x_t, atol=1e-4, rtol=1e-4)
        assert torch.equal(experience.target[g, 0, 0], eps)
    assert experience.group_prompt.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert experience.mask.all()


def test_account(policy):
    experience = collect(policy)
    assert experience.path_rewards.shape == (12, 0)
    assert (experience.nfe, policy.nfe, experience.images_scored, experience.dropped) == (0, 0, 0, [])
    assert set(experience.seconds) == {"encode"}
    assert experience.seconds["encode"] > 0
    assert not any(value.requires_grad or value.is_inference() for value in experience.tensors().values())


def test_timesteps_are_drawn_over_all_training_timesteps(policy):
    drawn = torch.cat([collect(policy, update=update).timesteps.view(4, 3) for update in range(40)])
    strata = drawn.clamp(max=998) // 333
    assert torch.equal(strata, torch.tensor([[0, 1, 2]]).expand(160, 3))
    assert len(drawn.unique()) > 300  # not a sampler's grid
    assert drawn.min() < 15
    assert drawn.max() > 984
    # Mean of U{0..999}; the standard error of 480 stratified draws is 96 / √480 = 4.4.
    assert drawn.double().mean().item() == pytest.approx(499.5, abs=15)


def test_dropped_prompts_become_the_empty_prompt(policy):
    chance = [generator(11, "empty prompt", 5, slot).random() for slot in range(4)]
    proportion = sorted(chance)[1] + 1e-9  # two of the four
    given, found = policy.encode(PROMPTS), collect(policy, replace(OPTIONS, proportion_empty_prompts=proportion))
    empty = policy.uncondition(1)
    for b in range(4):
        expected = empty if chance[b] < proportion else given.index([b])
        assert torch.equal(found.condition.prompt_embeds[b], expected.prompt_embeds[0])
        assert torch.equal(found.condition.pooled[b], expected.pooled[0])
    assert found.prompts == PROMPTS
    for proportion, expected in ((0.0, given), (1.0, policy.uncondition(4))):
        dropped = drop_prompts(policy, given, Seeds(11, 5, (0, 1, 2, 3)), proportion)
        assert torch.equal(dropped.prompt_embeds, expected.prompt_embeds)
    slots = tuple(range(2000))
    many = drop_prompts(policy, given.index([0] * 2000), Seeds(1, 0, slots), 0.1)
    share = (many.pooled == empty.pooled).all(1).double().mean().item()
    assert share == pytest.approx(0.1, abs=0.02)  # three standard errors


def test_four_images_are_four_times_one(policy):
    together = collect(policy, replace(OPTIONS, proportion_empty_prompts=0.5))
    apart = [collect(policy, replace(OPTIONS, proportion_empty_prompts=0.5), slots=(slot,)) for slot in range(4)]
    assert_same(together, Experience.cat(apart), tolerance=1e-4)
    assert_same(together, collect(policy, replace(OPTIONS, proportion_empty_prompts=0.5)))
    assert not torch.equal(together.x_t, collect(policy, update=6).x_t)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_loss_by_hand_from_the_unet(policy, gamma):
    """The UNet and the scheduler's table alone, in numpy."""
    experience = collect(policy, replace(OPTIONS, proportion_empty_prompts=0.5))
    found = StandardFineTuning(replace(OPTIONS, snr_gamma=gamma)).loss(policy, experience)
    clean = policy._pipeline.scheduler.alphas_cumprod.numpy().astype(np.float64)
    terms, errors = [], []
    for g in range(12):
        b, t = int(experience.group_prompt[g]), experience.timesteps[g]
        added = {"text_embeds": experience.condition.pooled[[b]], "time_ids": experience.condition.time_ids[[b]]}
        with torch.no_grad():
            embeds = experience.condition.prompt_embeds[[b]]
            eps = policy.denoiser(experience.x_t[g, 0], t, embeds, added_cond_kwargs=added).sample.numpy()
        errors.append(np.mean((eps - experience.target[g, 0].numpy()) ** 2, dtype=np.float64))
        snr = clean[int(t)] / (1 - clean[int(t)])
        terms.append(errors[-1] * (min(snr, gamma) / snr if gamma else 1.0))
    assert found.value.item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert found.metrics == pytest.approx({"loss": np.mean(terms), "error": np.mean(errors)}, rel=1e-4)


def test_gradient_against_finite_differences(policy):
    """Through the UNet, in float64."""
    experience = collect(policy, slots=(0, 1))
    experience.x_t, experience.target = experience.x_t.double(), experience.target.double()
    policy.denoiser.double().requires_grad_(True)
    method = StandardFineTuning(replace(OPTIONS, snr_gamma=1.0))
    method.loss(policy, experience).value.backward()
    for weight in (policy.denoiser.conv_in.weight, policy.denoiser.conv_out.bias):
        place = int(weight.grad.abs().argmax())
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(method.loss(policy, experience).value.item())
        assert weight.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_gradients_reach_the_denoiser_only(policy):
    policy.denoiser.requires_grad_(True)
    StandardFineTuning(OPTIONS).loss(policy, collect(policy)).value.backward()
    assert all(parameter.grad is not None for parameter in policy.denoiser.parameters())
    others = (policy.vae, policy._pipeline.text_encoder, policy._pipeline.text_encoder_2)
    assert all(parameter.grad is None for module in others for parameter in module.parameters())


def test_three_steps_lower_the_loss(policy):
    experience, method = collect(policy), StandardFineTuning(OPTIONS)
    optimizer = torch.optim.AdamW(policy.denoiser.requires_grad_(True).parameters(), lr=2e-3)
    values = []
    for _ in range(4):
        loss = method.loss(policy, experience).value
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[0] > values[1] > values[2] > values[3]
    assert values[3] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timesteps_per_image": 0}, "at least 1"),
        ({"proportion_empty_prompts": 1.5}, "at most 1"),
        ({"proportion_empty_prompts": -0.1}, "at least 0"),
        ({"snr_gamma": -1.0}, "at least 0"),
    ],
)
def test_options_refused(change, said):
    with pytest.raises(OptionError, match=said) as refused:
        StandardOptions(**change)
    assert refused.value.option == next(iter(change))


def test_examples_without_an_image_are_refused(policy):
    method, seeds = StandardFineTuning(), Seeds(0, 0, (0, 1))
    with pytest.raises(ValueError, match="one image of each prompt"):
        method.collect(policy, policy, unasked, Batch(PROMPTS[:2], np.zeros((2, 0, 0, 0, 3), np.uint8)), seeds)
    with pytest.raises(ValueError, match="2 slots"):
        method.collect(policy, policy, unasked, Batch(PROMPTS, IMAGES), seeds)
