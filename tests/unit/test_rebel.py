"""REBEL's two hooks: pairs of the present policy's samples, and the regression over them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import PromptSource
from sharpening.loop import learn
from sharpening.methods import load_method, options_class
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.rebel import Rebel
from sharpening.options import OptionError, TrainingOptions
from sharpening.options.rebel import RebelOptions
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.seeds import noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
OPTIONS = RebelOptions(rollout_steps=6, timesteps_per_rollout=3, beta=50.0, reward_scale=0.3, snr_gamma=0.5)
NAMES = ("x_t", "target", "reference_error", "reward")


def collect(policy, score, options=OPTIONS, slots=(0, 1, 2, 3), reference=None):
    batch = PromptSource(PROMPTS).batch([slot % 4 for slot in slots])
    return Rebel(options).collect(policy, reference or policy.frozen_copy(), score, batch, Seeds(11, 5, slots))


def perturb(policy, scale=0.02):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))


def test_shapes_and_account(policy, brightness):
    seen, reference = [], policy.frozen_copy()
    for model in (policy, reference):
        model.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    experience = collect(policy, brightness, reference=reference)
    shapes = {name: tuple(value.shape) for name, value in experience.tensors().items() if "condition" not in name}
    assert shapes == {
        "group_prompt": (12,),
        "x_t": (12, 2, 1, 8, 8, 8),
        "timesteps": (12, 1),
        "mask": (12, 1),
        "target": (12, 2, 1, 8, 8, 8),
        "reference_error": (12, 2, 1),
        "reward": (12, 2),
        "path_rewards": (12, 2),
    }
    assert experience.group_prompt.tolist() == [g // 3 for g in range(12)]
    assert (experience.prompts, experience.slots, experience.update) == (PROMPTS, [0, 1, 2, 3], 5)
    assert experience.images_scored == 8
    assert experience.nfe == sum(seen) == 4 * 2 * 6 + 12 * 2  # samples, θ_old's errors
    assert set(experience.seconds) == {"generate", "decode", "reward", "reference"}
    assert reference.nfe == 0
    for name, value in experience.tensors().items():
        assert not value.requires_grad, name
        assert not value.is_inference(), name


def test_pairs_by_hand(policy, brightness):
    """Samples, their order, states and θ_old's errors, from seeds, the sampler and diffusers' scheduler alone."""
    perturb(policy)
    experience = collect(policy, brightness, reference=policy.frozen_copy())
    scheduler, grid = policy._pipeline.scheduler, policy.timesteps(6).tolist()
    for slot, prompt in enumerate(PROMPTS):
        initial = torch.stack([noise((8, 8, 8), 11, "latent", 5, slot, k) for k in range(2)])
        condition = policy.encode([prompt])
        x0 = sample(policy, condition.repeat_interleave(2), initial, 6)
        rewards = brightness(policy.decode(x0), [prompt] * 2).values
        best = int(np.argmax(rewards))
        for k in range(3):
            g, t = 3 * slot + k, experience.timesteps[3 * slot + k, 0]
            assert grid.index(int(t)) // 2 == k
            eps = noise((8, 8, 8), 11, "branch", 5, slot, k)
            for member, sample_number in enumerate((best, 1 - best)):
                expected = scheduler.add_noise(x0[sample_number], eps, t[None])
                torch.testing.assert_close(experience.x_t[g, member, 0], expected, atol=1e-3, rtol=1e-3)
                assert torch.equal(experience.target[g, member, 0], eps)
                with torch.no_grad():
                    predicted = policy.predict(experience.x_t[g, member], t[None], condition).eps[0]
                error = np.mean((predicted.numpy() - eps.numpy()) ** 2)
                assert experience.reference_error[g, member, 0].item() == pytest.approx(error, rel=1e-4)
            np.testing.assert_allclose(experience.reward[g], rewards[[best, 1 - best]], atol=1e-2)
            np.testing.assert_allclose(experience.path_rewards[g], rewards, atol=1e-2)


def test_loss_by_an_independent_computation(policy, brightness):
    """`(−(β/2)·[(e_θ − e_old)_1 − (e_θ − e_old)_2] − η (r_1 − r_2))²`, each state weighted by min(SNR, γ) / SNR."""
    experience = collect(policy, brightness)
    perturb(policy)
    found = Rebel(OPTIONS).loss(policy, experience)
    levels = policy._pipeline.scheduler.alphas_cumprod.numpy()
    terms, gaps = [], []
    for g in range(12):
        t = int(experience.timesteps[g, 0])
        condition = experience.condition.index([int(experience.group_prompt[g])])
        growth = []
        for member in range(2):
            with torch.no_grad():
                predicted = policy.predict(experience.x_t[g, member], torch.tensor([t]), condition).eps[0].numpy()
            error = np.mean((predicted - experience.target[g, member, 0].numpy()) ** 2)
            growth.append(error - experience.reference_error[g, member, 0].item())
        snr = levels[t] / (1 - levels[t])
        gaps.append(-50.0 / 2 * min(1.0, 0.5 / snr) * (growth[0] - growth[1]))
        r_1, r_2 = experience.reward[g].tolist()
        terms.append((gaps[-1] - 0.3 * (r_1 - r_2)) ** 2)
    assert np.abs(gaps).max() > 0.05
    assert found.value.item() == pytest.approx(np.mean(terms), rel=1e-3)
    assert found.metrics["log_ratio_gap"] == pytest.approx(np.mean(gaps), rel=1e-2, abs=1e-4)
    assert found.metrics["accuracy"] == pytest.approx(np.mean(np.array(gaps) > 0))


def test_loss_of_a_case_worked_by_hand(policy, brightness):
    """With the policy still θ_old, e_θ is known: e_old may be set so that Δ is."""
    method = Rebel(replace(OPTIONS, snr_gamma=0.0, beta=10.0, reward_scale=0.5))
    experience = collect(policy, brightness, slots=(0,)).select([0, 1])
    experience.reference_error += torch.tensor([[0.4, 0.1], [0.0, 0.2]])[:, :, None]
    experience.reward = torch.tensor([[7.0, 5.0], [3.0, 3.0]])
    loss = method.loss(policy, experience)
    # Δ = 5·(0.4 − 0.1) = 1.5 and 5·(0 − 0.2) = −1; targets 0.5·2 = 1 and 0; squares 0.25 and 1.
    assert loss.value.item() == pytest.approx(0.625, rel=1e-4)
    assert loss.metrics["log_ratio_gap"] == pytest.approx(0.25, rel=1e-3)
    assert loss.metrics["target"] == pytest.approx(0.5)
    assert loss.metrics["accuracy"] == 0.5


def test_on_policy_the_log_ratio_is_zero_and_the_gradient_is_not(policy, brightness):
    experience = collect(policy, brightness)
    policy.denoiser.requires_grad_(True)
    loss = Rebel(OPTIONS).loss(policy, experience)
    assert abs(loss.metrics["log_ratio_gap"]) < 1e-4
    squares = (0.3 * (experience.reward[:, 0] - experience.reward[:, 1])).square()
    assert loss.value.item() == pytest.approx(squares.mean().item(), rel=1e-3)
    loss.value.backward()
    norm = torch.stack([p.grad.norm() for p in policy.denoiser.parameters()]).norm()
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.sub_(1e-3 * parameter.grad / norm)
    after = Rebel(OPTIONS).loss(policy, experience)
    assert after.metrics["log_ratio_gap"] > 1e-3
    assert after.value.item() < loss.value.item()
    others = (policy.vae, policy._pipeline.text_encoder, policy._pipeline.text_encoder_2)
    assert all(parameter.grad is None for module in others for parameter in module.parameters())


def test_gradient_against_finite_differences(policy, brightness):
    """Through the UNet, in float64."""
    experience = collect(policy, brightness, slots=(0, 1))
    for name in NAMES:
        setattr(experience, name, getattr(experience, name).double())
    perturb(policy)
    policy.denoiser.double().requires_grad_(True)
    method = Rebel(OPTIONS)
    method.loss(policy, experience).value.backward()
    for weight in (policy.denoiser.conv_in.weight, policy.denoiser.conv_out.bias, policy.denoiser.conv_out.weight):
        place = int(weight.grad.abs().argmax())
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(method.loss(policy, experience).value.item())
        with torch.no_grad():
            weight.view(-1)[place] += 1e-5
        assert weight.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_four_prompts_are_four_times_one(policy, brightness):
    together = collect(policy, brightness)
    apart = Experience.cat([collect(policy, brightness, slots=(slot,)) for slot in range(4)])
    for name, value in together.tensors().items():
        torch.testing.assert_close(value, apart.tensors()[name], atol=1e-3, rtol=1e-3, msg=name)
    assert torch.equal(together.timesteps, apart.timesteps)
    assert (together.nfe, together.images_scored) == (apart.nfe, apart.images_scored)
    again = collect(policy, brightness)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in together.tensors().items())


def test_a_failed_score_drops_exactly_its_prompt(policy, brightness):
    def failing(images, prompts):
        scores = brightness(images, prompts)
        scores.values[3] = np.nan  # the second sample of the second prompt
        return Scores(scores.values, {6: "timeout"})

    whole, experience = collect(policy, brightness), collect(policy, failing)
    assert experience.dropped == [(1, "not finite"), (3, "timeout")]
    assert (experience.slots, experience.prompts) == ([0, 2], [PROMPTS[0], PROMPTS[2]])
    kept = whole.select([0, 1, 2, 6, 7, 8])
    for name, value in experience.tensors().items():
        torch.testing.assert_close(value, kept.tensors()[name], atol=1e-5, rtol=1e-5, msg=name)

    def down(images, prompts):
        return Scores(np.zeros(len(images), np.float32), dict.fromkeys(range(len(images)), "unavailable"))

    nothing = collect(policy, down)
    assert (nothing.groups, nothing.nfe, len(nothing.dropped)) == (0, 4 * 2 * 6, 4)


def test_a_tie_regresses_the_log_ratio_to_zero(policy):
    def tie(images, prompts):
        return Scores(np.full(len(images), 3.0, np.float32))

    experience = collect(policy, tie, slots=(0, 1))
    assert Rebel(OPTIONS).loss(policy, experience).value.item() == pytest.approx(0.0, abs=1e-6)
    perturb(policy)
    assert Rebel(OPTIONS).loss(policy, experience).value.item() > 1e-3


def test_a_learnt_regression_explains_the_rewards(policy, brightness):
    """Steps on one fixed experience lower the loss, and the log ratios come to say what the rewards say."""
    method, experience = Rebel(replace(OPTIONS, reward_scale=3.0)), collect(policy, brightness)
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters(), lr=3e-4)
    rows = [learn(policy, method, experience, optimizer, TrainingOptions(train_batch_size=5)) for _ in range(3)]
    losses = [row["loss"] for row in rows] + [method.loss(policy, experience).value.item()]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    assert method.loss(policy, experience).metrics["accuracy"] > 0.7


def test_options_and_registration():
    assert options_class("rebel") is RebelOptions
    assert isinstance(load_method("rebel"), Rebel)
    assert RebelOptions(timesteps_per_rollout=3).groups_per_prompt == 3
    with pytest.raises(OptionError, match="reward_scale: must be greater than 0"):
        RebelOptions(reward_scale=0.0)
    with pytest.raises(OptionError, match="beta: must be greater than 0"):
        RebelOptions(beta=-1.0)
    with pytest.raises(OptionError, match="timesteps_per_rollout: must be at most rollout_steps"):
        RebelOptions(rollout_steps=3, timesteps_per_rollout=4)
