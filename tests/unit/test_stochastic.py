"""Stochastic trajectories, their steps' probabilities, and what DDPO and D3PO have in common."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sharpening.data.source import PromptSource
from sharpening.loop import learn
from sharpening.methods import METHODS, load_method, options_class
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.stochastic import gaussian_log_prob, sample_transitions, step_log_prob
from sharpening.options import OptionError, TrainingOptions
from sharpening.options.d3po import D3POOptions
from sharpening.options.ddpo import DDPOOptions
from sharpening.rewards.base import Scores
from sharpening.seeds import noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
STEPS = 6
OPTIONS = {
    "ddpo": DDPOOptions(branches=3, rollout_steps=STEPS, timesteps_per_rollout=3, noisy_share=1.0),
    "d3po": D3POOptions(rollout_steps=STEPS, timesteps_per_rollout=3, noisy_share=1.0),
}
SAMPLES = {"ddpo": 3, "d3po": 2}
OLD = {"ddpo": "log_prob", "d3po": "reference_log_prob"}
both = pytest.mark.parametrize("name", ["ddpo", "d3po"])


def collect(name, policy, score, slots=(0, 1, 2, 3), update=5, reference=None, **changes):
    batch = PromptSource(PROMPTS).batch([slot % 4 for slot in slots])
    method = load_method(name, replace(OPTIONS[name], **changes))
    return method.collect(policy, reference or policy.frozen_copy(), score, batch, Seeds(11, update, slots))


def perturb(policy, scale=0.02):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))


def assert_same(first, second, tolerance=None):
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        if tolerance is None:
            assert torch.equal(value, second.tensors()[name]), name
        else:
            torch.testing.assert_close(value, second.tensors()[name], atol=tolerance, rtol=tolerance, msg=name)


def actions(experience):
    """Every step of an experience: x_t, x_prev [G·n, C, H, W], t [G·n], prompt of each, old log-probability."""
    x_t, x_prev = experience.x_t, experience.x_prev
    pair = x_t.shape[1] if x_t.ndim == 5 else 1
    old = experience.reference_log_prob if pair == 2 else experience.log_prob
    shape = (-1, *x_t.shape[-3:])
    return (
        x_t.reshape(shape),
        x_prev.reshape(shape),
        experience.timesteps.repeat_interleave(pair),
        experience.group_prompt.repeat_interleave(pair),
        old.flatten(),
    )


def log_prob_by_numpy(policy, eps, x_t, x_prev, t, steps, eta):
    """BASELINES.md's σ², μ and logp, in float64 from the scheduler's ᾱ."""
    scheduler = policy._pipeline.scheduler
    table = scheduler.alphas_cumprod.double().numpy()
    a_t, p = table[t], t - 1000 // steps
    a_p = table[p] if p >= 0 else float(scheduler.final_alpha_cumprod)
    variance = eta**2 * (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    x0 = (x_t - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
    mu = np.sqrt(a_p) * x0 + np.sqrt(1 - a_p - variance) * eps
    return np.mean(-((x_prev - mu) ** 2) / (2 * variance) - 0.5 * np.log(variance) - 0.5 * np.log(2 * np.pi))


def test_log_probability_is_the_mean_of_a_normal_s():
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    deviation = torch.rand(5, 1, 1, 1, generator=generator, dtype=torch.float64) + 0.05
    expected = torch.distributions.Normal(mean, deviation).log_prob(x).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(x, mean, deviation), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_trajectories_are_those_of_diffusers(policy, eta, guidance_scale):
    options = replace(OPTIONS["ddpo"], eta=eta, guidance_scale=guidance_scale)
    condition = policy.encode(PROMPTS[:2])
    initial = torch.stack([noise(policy.latent_shape, 1, "x", b) for b in range(2)])
    draws = torch.stack([noise((2, *policy.latent_shape), 1, "step", i) for i in range(STEPS)])
    places = torch.tensor([[0, 2, 4], [1, 2, 3]])
    found = sample_transitions(policy, condition, initial, lambda i: draws[i], places, options)

    scheduler = DDIMScheduler.from_config(policy._pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    states = [initial]
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            eps = policy.predict(states[-1], t.expand(2), condition, guidance_scale).eps
        states.append(scheduler.step(eps, t, states[-1], eta=eta, variance_noise=draws[i]).prev_sample)
    for b in range(2):
        for k, i in enumerate(places[b].tolist()):
            torch.testing.assert_close(found.x_t[b, k], states[i][b], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.x_prev[b, k], states[i + 1][b], atol=1e-4, rtol=1e-4)
            assert found.timesteps[b, k] == scheduler.timesteps[i]
    torch.testing.assert_close(found.x0, states[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("eta", "guidance_scale"), [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0)])
@both
def test_kept_log_probabilities_by_numpy(policy, brightness, name, eta, guidance_scale):
    experience = collect(name, policy, brightness, slots=(0, 1), eta=eta, guidance_scale=guidance_scale)
    x_t, x_prev, t, prompt, old = actions(experience)
    with torch.no_grad():
        eps = policy.predict(x_t, t, experience.condition.index(prompt), guidance_scale).eps
    expected = [
        log_prob_by_numpy(policy, *(x[r].double().numpy() for x in (eps, x_t, x_prev)), int(t[r]), STEPS, eta)
        for r in range(len(x_t))
    ]
    assert old.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@both
def test_states_follow_from_seeds(policy, brightness, name):
    """An action is its state's mean plus σ times the noise of (update, slot, sample, step)."""
    experience = collect(name, policy, brightness, slots=(4, 6))
    x_t, x_prev, t, prompt, _ = actions(experience)
    grid = policy.timesteps(STEPS).tolist()
    with torch.no_grad():
        prediction = policy.predict(x_t, t, experience.condition.index(prompt))
        mean, deviation = policy.moments(t, policy.previous(t, STEPS), prediction, 1.0)
    z = (x_prev - mean) / deviation
    for row in range(len(z)):
        sample = row % 2 if name == "d3po" else row // 3 % 3
        slot, i = experience.slots[prompt[row]], grid.index(int(t[row]))
        torch.testing.assert_close(z[row], noise((8, 8, 8), 11, "step", 5, slot, sample, i), atol=2e-3, rtol=2e-3)


@both
def test_the_last_step_is_not_learnt_and_timesteps_are_stratified(policy, brightness, name):
    experience = collect(name, policy, brightness, timesteps_per_rollout=STEPS - 1)
    grid = policy.timesteps(STEPS).tolist()
    per_sample = experience.timesteps.view(-1, STEPS - 1)
    assert per_sample.tolist() == [grid[:-1]] * len(per_sample)
    few = collect(name, policy, brightness, timesteps_per_rollout=2, rollout_steps=9)
    places = torch.tensor([policy.timesteps(9).tolist().index(t) for t in few.timesteps.tolist()]).view(-1, 2)
    assert (places // 4).tolist() == [[0, 1]] * len(places)  # eight places in two strata
    assert len({tuple(row) for row in places.tolist()}) > 1
    noisy = collect(name, policy, brightness, timesteps_per_rollout=3, noisy_share=0.5)
    assert noisy.timesteps.view(-1, 3).tolist() == [grid[:3]] * len(noisy.timesteps.view(-1, 3))


def test_learnable_steps_are_a_share_without_the_last():
    for steps, share, expected in ((10, 0.7, 7), (12, 0.5, 6), (12, 1.0, 11), (12, 0.01, 1), (2, 1.0, 1), (7, 0.5, 3)):
        options = D3POOptions(rollout_steps=steps, timesteps_per_rollout=1, noisy_share=share)
        assert options.learnable_steps == expected


@both
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_account_is_what_reached_the_unet(policy, brightness, name, guidance_scale):
    reference, seen = policy.frozen_copy(), []
    for model in (policy, reference):
        model.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    experience = collect(name, policy, brightness, reference=reference, guidance_scale=guidance_scale)
    evaluations = 4 * SAMPLES[name] * (STEPS + (3 if name == "d3po" else 0))
    assert experience.nfe == sum(seen) == evaluations * (2 if guidance_scale > 1 else 1)
    assert experience.images_scored == 4 * SAMPLES[name]
    assert set(experience.seconds) == {"generate", "decode", "reward"} | ({"reference"} if name == "d3po" else set())
    assert experience.groups == 4 * OPTIONS[name].groups_per_prompt
    assert experience.group_prompt.tolist() == sorted(list(range(4)) * OPTIONS[name].groups_per_prompt)


@both
def test_rollouts_keep_no_graph(policy, brightness, name):
    policy.denoiser.requires_grad_(True)
    for key, value in collect(name, policy, brightness).tensors().items():
        assert not value.requires_grad, key
        assert not value.is_inference(), key
        assert value.device.type == "cpu", key


@both
def test_collect_is_a_function_of_its_seeds(policy, brightness, name):
    first = collect(name, policy, brightness)
    assert_same(first, collect(name, policy, brightness))
    other = collect(name, policy, brightness, update=6)
    assert not torch.equal(first.x_prev, other.x_prev)
    assert not torch.equal(first.timesteps, other.timesteps)


@both
def test_four_prompts_are_four_times_one(policy, brightness, name):
    together = collect(name, policy, brightness)
    apart = Experience.cat([collect(name, policy, brightness, slots=(slot,)) for slot in range(4)])
    assert_same(together, apart, tolerance=1e-3)
    assert torch.equal(together.timesteps, apart.timesteps)
    assert together.nfe == apart.nfe
    perturb(policy)
    method, size = load_method(name, OPTIONS[name]), OPTIONS[name].groups_per_prompt
    whole = method.loss(policy, together)
    parts = [method.loss(policy, together.select(range(size * b, size * b + size))) for b in range(4)]
    torch.testing.assert_close(whole.value, torch.stack([part.value for part in parts]).mean(), rtol=1e-4, atol=1e-5)
    for metric, value in whole.metrics.items():
        assert value == pytest.approx(np.mean([part.metrics[metric] for part in parts]), rel=1e-4, abs=1e-5), metric


@both
@pytest.mark.parametrize("reason", ["not finite", "timeout"])
def test_a_failed_score_drops_exactly_its_prompt(policy, brightness, name, reason):
    def failing(images, prompts):
        scores, index = brightness(images, prompts), list(prompts).index(PROMPTS[1])
        if reason == "timeout":
            return Scores(scores.values, {index: "timeout"})
        scores.values[index] = np.nan
        return scores

    slots, size = (4, 5, 6, 7), OPTIONS[name].groups_per_prompt
    experience = collect(name, policy, failing, slots=slots)
    assert experience.dropped == [(5, reason)]
    assert (experience.slots, experience.prompts) == ([4, 6, 7], [PROMPTS[0], PROMPTS[2], PROMPTS[3]])
    kept = [g for g in range(4 * size) if g // size != 1]
    assert_same(experience, collect(name, policy, brightness, slots=slots).select(kept), tolerance=1e-5)


@both
def test_all_prompts_may_fail(policy, brightness, name):
    def down(images, prompts):
        return Scores(np.zeros(len(images), np.float32), dict.fromkeys(range(len(images)), "unavailable"))

    experience = collect(name, policy, down)
    assert (experience.groups, experience.prompts) == (0, [])
    assert experience.dropped == [(slot, "unavailable") for slot in range(4)]
    joined = Experience.cat([experience, collect(name, policy, brightness, slots=(4, 5))])
    assert (joined.groups, joined.slots) == (2 * OPTIONS[name].groups_per_prompt, [4, 5])


@both
def test_gradients_reach_the_denoiser_alone(policy, brightness, name):
    experience = collect(name, policy, brightness, slots=(0, 1))
    perturb(policy)
    policy.denoiser.requires_grad_(True)
    load_method(name, OPTIONS[name]).loss(policy, experience).value.backward()
    assert sum(p.grad.abs().sum() for p in policy.denoiser.parameters()) > 0
    others = [policy.vae, policy._pipeline.text_encoder, policy._pipeline.text_encoder_2]
    assert all(p.grad is None for module in others for p in module.parameters())
    assert all(value.grad is None for value in experience.tensors().values())


@both
def test_gradient_of_the_whole_loss_against_finite_differences(policy, brightness, name):
    """Through the UNet, in float64; clipping is wide, so that no difference straddles its edge."""
    experience = collect(name, policy, brightness, slots=(0, 1))
    for key in ("x_t", "x_prev", OLD[name]):
        setattr(experience, key, getattr(experience, key).double())
    perturb(policy)
    policy.denoiser.double().requires_grad_(True)
    method = load_method(name, replace(OPTIONS[name], clip_range=0.999, guidance_scale=2.0))
    method.loss(policy, experience).value.backward()
    for weight in (policy.denoiser.conv_in.weight, policy.denoiser.conv_out.bias, policy.denoiser.conv_out.weight):
        place, values = int(weight.grad.abs().argmax()), []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(method.loss(policy, experience).value.item())
        with torch.no_grad():
            weight.view(-1)[place] += 1e-5
        assert weight.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@both
def test_three_steps_on_one_experience_lower_the_loss(policy, brightness, name):
    # Within DDPO's own range the loss of one experience has nothing left to gain after the first step.
    method = load_method(name, replace(OPTIONS[name], clip_range=0.9))
    experience = collect(name, policy, brightness)
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0)
    training = TrainingOptions(train_batch_size=100)
    rows = [learn(policy, method, experience, optimizer, training) for _ in range(4)]
    losses = [row["loss"] for row in rows]
    assert losses[0] == pytest.approx({"ddpo": 0.0, "d3po": np.log(2)}[name], abs=1e-5)
    assert losses[3] < losses[2] < losses[1] < losses[0]
    gain = {"ddpo": "gain", "d3po": "log_ratio_gap"}[name]
    assert rows[3][gain] > rows[1][gain] > 0


@both
def test_the_loss_is_guided_as_the_rollout_was(policy, brightness, name):
    experience = collect(name, policy, brightness, guidance_scale=3.0)
    for guidance_scale, same in ((3.0, True), (1.0, False)):
        x_t, x_prev, t, prompt, old = actions(experience)
        options = replace(OPTIONS[name], guidance_scale=guidance_scale)
        with torch.no_grad():
            found = step_log_prob(policy, experience.condition.index(prompt), x_t, x_prev, t, options)
        assert bool((found - old).abs().max() < 1e-4) is same


@both
def test_bf16_rollouts_compare_probabilities_in_full_precision(policy, brightness, name):
    experience = collect(name, policy, brightness, rollout_precision="bf16")
    x_t, x_prev, t, prompt, old = actions(experience)
    assert x_t.dtype == torch.float32
    with torch.no_grad():
        exact = step_log_prob(policy, experience.condition.index(prompt), x_t, x_prev, t, OPTIONS[name])
    torch.testing.assert_close(old, exact, rtol=0, atol=2e-6)
    assert experience.nfe == 4 * SAMPLES[name] * (STEPS + 3)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"timesteps_per_rollout": STEPS}, "timesteps_per_rollout"),
        ({"timesteps_per_rollout": 0}, "timesteps_per_rollout"),
        ({"noisy_share": 0.4}, "timesteps_per_rollout"),
        ({"noisy_share": 0.0}, "noisy_share"),
        ({"rollout_steps": 1, "timesteps_per_rollout": 1}, "rollout_steps"),
        ({"eta": 0.0}, "eta"),
        ({"eta": 1.5}, "eta"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"clip_range": 1.0}, "clip_range"),
    ],
)
@both
def test_options_that_cannot_work_are_refused(name, change, option):
    with pytest.raises(OptionError, match="pass") as caught:
        replace(OPTIONS[name], **change)
    assert caught.value.option == option


@both
def test_registered(name):
    assert name in METHODS
    method = load_method(name)
    assert type(method.options) is options_class(name)
    assert method.options.groups_per_prompt == (4 * 4 if name == "ddpo" else 6)
