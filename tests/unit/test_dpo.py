"""Diffusion-DPO on preference pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import Batch
from sharpening.methods import load_method
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.dpo import DiffusionDPO
from sharpening.methods.states import state_errors
from sharpening.options import OptionError
from sharpening.options.dpo import DPOOptions
from sharpening.seeds import generator, noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 2, 64, 64, 3), dtype=np.uint8)
OPTIONS = DPOOptions(timesteps_per_pair=3, beta=40.0, snr_gamma=0.0)


def unasked(images, prompts):
    raise AssertionError("the reward was asked")


def collect(policy, options=OPTIONS, slots=(0, 1, 2, 3), update=5, reference=None):
    batch = Batch([PROMPTS[slot] for slot in slots], IMAGES[list(slots)])
    reference = reference or policy.frozen_copy()
    return DiffusionDPO(options).collect(policy, reference, unasked, batch, Seeds(11, update, slots))


def perturb(policy, scale=0.02):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))


def assert_same(first, second, tolerance=0.0):
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        torch.testing.assert_close(value, second.tensors()[name], atol=tolerance, rtol=tolerance, msg=name)


def unet_error(policy, experience, group, member):
    """`mean ‖ε̂ − ε‖²` in numpy, straight from the UNet."""
    b = int(experience.group_prompt[group])
    condition = experience.condition
    added = {"text_embeds": condition.pooled[[b]], "time_ids": condition.time_ids[[b]]}
    with torch.no_grad():
        eps = policy.denoiser(
            experience.x_t[group, member],
            experience.timesteps[group],
            condition.prompt_embeds[[b]],
            added_cond_kwargs=added,
        ).sample.numpy()
    return np.mean((eps - experience.target[group, member].numpy()) ** 2, dtype=np.float64)


def test_registered_with_its_options():
    method = load_method("dpo")
    assert isinstance(method, DiffusionDPO)
    assert (method.options.data, method.options.rewarded) == ("pairs", False)
    assert OPTIONS.groups_per_prompt == 3


def test_both_images_of_a_pair_have_one_timestep_and_one_noise(policy):
    """x_t from the VAE, diffusers' own scheduler and the seeds; member 0 is the preferred image."""
    experience = collect(policy)
    assert experience.x_t.shape == (12, 2, 1, 8, 8, 8)
    pipeline = policy._pipeline
    for g in range(12):
        slot, k = divmod(g, 3)
        eps = noise((8, 8, 8), 11, "noise", 5, slot, k)
        assert 333 * k <= experience.timesteps[g, 0] <= 333 * (k + 1)
        for member in range(2):
            pixels = torch.from_numpy(IMAGES[slot, [member]].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                x0 = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
            x_t = pipeline.scheduler.add_noise(x0, eps[None], experience.timesteps[g])
            torch.testing.assert_close(experience.x_t[g, member], x_t, atol=1e-4, rtol=1e-4)
            assert torch.equal(experience.target[g, member, 0], eps)


def test_reference_errors_and_account(policy):
    reference, seen = policy.frozen_copy(), []
    perturb(policy)
    policy.denoiser.requires_grad_(True)
    for model in (policy, reference):
        model.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    experience = collect(policy, reference=reference)
    assert experience.nfe == sum(seen) == 24
    assert (experience.images_scored, experience.dropped, experience.path_rewards.shape) == (0, [], (12, 0))
    assert set(experience.seconds) == {"encode", "reference"}
    for name, value in experience.tensors().items():
        assert not value.requires_grad, name
        assert not value.is_inference(), name
    for g in range(12):
        for member in range(2):
            expected = unet_error(reference, experience, g, member)
            assert experience.reference_error[g, member, 0].item() == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        assert (state_errors(policy, experience) - experience.reference_error).abs().max() > 1e-3


def test_a_pair_without_its_prompt_is_one_for_the_reference_too(policy):
    """Which pairs lose their prompts is a function of the seed alone; nothing else of them changes."""
    chance = [generator(11, "empty prompt", 5, slot).random() for slot in range(4)]
    proportion = sorted(chance)[1] + 1e-9  # two of the four
    given, found = collect(policy), collect(policy, replace(OPTIONS, proportion_empty_prompts=proportion))
    empty = policy.uncondition(1)
    for b in range(4):
        expected = empty if chance[b] < proportion else given.condition.index([b])
        assert torch.equal(found.condition.prompt_embeds[b], expected.prompt_embeds[0])
        assert torch.equal(found.condition.pooled[b], expected.pooled[0])
    assert torch.equal(found.x_t, given.x_t)
    assert found.prompts == PROMPTS
    for g in range(0, 12, 3):
        expected = unet_error(policy, found, g, 0)
        assert found.reference_error[g, 0, 0].item() == pytest.approx(expected, rel=1e-4)
        dropped = chance[g // 3] < proportion
        same = torch.allclose(found.reference_error[g], given.reference_error[g], rtol=1e-5, atol=0)
        assert same != dropped


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_loss_by_hand(policy, gamma):
    """BASELINES.md's formula in numpy: `−log σ(−(β/2) [(e_θ^w − e_θ^l) − (e_ref^w − e_ref^l)])`, then the mean."""
    experience = collect(policy)
    reference = policy.frozen_copy()
    perturb(policy)
    found = DiffusionDPO(replace(OPTIONS, snr_gamma=gamma)).loss(policy, experience)
    clean = policy._pipeline.scheduler.alphas_cumprod.double().numpy()
    terms, agreed, ratios, winner_errors = [], [], [], []
    for g in range(12):
        t = int(experience.timesteps[g, 0])
        snr = clean[t] / (1 - clean[t])
        omega = min(snr, gamma) / snr if gamma else 1.0
        e_w, e_l = (unet_error(policy, experience, g, member) for member in range(2))
        ref_w, ref_l = (unet_error(reference, experience, g, member) for member in range(2))
        difference = omega * ((e_w - e_l) - (ref_w - ref_l))
        z = -(40.0 / 2) * difference
        terms.append(-np.log(1 / (1 + np.exp(-z))))
        agreed.append(difference < 0)
        ratios.append((omega * (ref_w - e_w), omega * (ref_l - e_l)))
        winner_errors.append(e_w)
    assert np.std(terms) > 0.005
    assert found.value.item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert found.metrics == pytest.approx(
        {
            "loss": np.mean(terms),
            "accuracy": np.mean(agreed),
            "winner_error": np.mean(winner_errors),
            "log_ratio_winner": np.mean(ratios, axis=0)[0],
            "log_ratio_loser": np.mean(ratios, axis=0)[1],
        },
        rel=1e-3,
        abs=1e-5,
    )


def test_the_log_sigmoid_is_taken_per_pair(policy):
    """Errors of our making: the mean of the log-sigmoids of ±4 is not the log-sigmoid of their mean."""
    experience = collect(policy).select([0, 1])
    with torch.no_grad():
        error = state_errors(policy, experience)
    experience.reference_error = error.clone()
    experience.reference_error[0, 0] += 0.2  # β/2 · 0.2 = 4 in the winner's favour
    experience.reference_error[1, 1] += 0.2
    value = DiffusionDPO(OPTIONS).loss(policy, experience).value.item()
    assert value == pytest.approx((np.log1p(np.exp(-4)) + np.log1p(np.exp(4))) / 2, rel=1e-4)


def test_loss_starts_at_log_2_and_three_steps_prefer_the_winners(policy):
    experience, method = collect(policy), DiffusionDPO(OPTIONS)
    optimizer = torch.optim.AdamW(policy.denoiser.requires_grad_(True).parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = method.loss(policy, experience)
        losses.append(loss)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    values = [loss.value.item() for loss in losses]
    assert values[0] == pytest.approx(np.log(2), abs=1e-4)
    assert values[0] > values[1] > values[2] > values[3]
    last = losses[-1].metrics
    assert last["log_ratio_winner"] > last["log_ratio_loser"]
    assert last["accuracy"] > 0.5


def test_gradient_against_finite_differences(policy):
    """Through the UNet, in float64."""
    experience = collect(policy, slots=(0, 1))
    for name in ("x_t", "target", "reference_error"):
        setattr(experience, name, getattr(experience, name).double())
    perturb(policy)
    policy.denoiser.double().requires_grad_(True)
    method = DiffusionDPO(replace(OPTIONS, snr_gamma=1.0))
    method.loss(policy, experience).value.backward()
    for weight in (policy.denoiser.conv_in.weight, policy.denoiser.conv_out.bias):
        place = int(weight.grad.abs().argmax())
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(method.loss(policy, experience).value.item())
        assert weight.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    others = (policy.vae, policy._pipeline.text_encoder, policy._pipeline.text_encoder_2)
    assert all(parameter.grad is None for module in others for parameter in module.parameters())


def test_four_pairs_are_four_times_one(policy):
    together = collect(policy)
    apart = Experience.cat([collect(policy, slots=(slot,)) for slot in range(4)])
    assert_same(together, apart, tolerance=1e-4)
    assert together.nfe == apart.nfe
    assert_same(together, collect(policy))
    assert not torch.equal(together.x_t, collect(policy, update=6).x_t)
    perturb(policy)
    whole = DiffusionDPO(OPTIONS).loss(policy, together).value
    parts = [DiffusionDPO(OPTIONS).loss(policy, together.select([3 * b, 3 * b + 1, 3 * b + 2])).value for b in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"beta": 0.0}, "greater than 0"), ({"timesteps_per_pair": 0}, "at least 1"), ({"snr_gamma": -1.0}, "at least 0")],
)
def test_options_refused(change, said):
    with pytest.raises(OptionError, match=said) as refused:
        DPOOptions(**change)
    assert refused.value.option == next(iter(change))


def test_examples_that_are_no_pairs_are_refused(policy):
    with pytest.raises(ValueError, match="a preferred and another image"):
        DiffusionDPO().collect(policy, policy, unasked, Batch(PROMPTS, IMAGES[:, :1]), Seeds(0, 0, (0, 1, 2, 3)))
