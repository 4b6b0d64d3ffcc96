"""SFT sharpening (Algorithm 1): branches of an image's noises, the winner, and Eq. 9."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import Batch
from sharpening.methods import load_method
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.sft import SFTSharpening
from sharpening.methods.states import state_errors
from sharpening.options import OptionError
from sharpening.options.sft import SFTOptions
from sharpening.rewards.base import Scores
from sharpening.seeds import noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64, 3), dtype=np.uint8)
OPTIONS = SFTOptions(branches=3, branch_steps=2, rollout_steps=6, timesteps_per_image=2)


def collect(policy, score, options=OPTIONS, slots=(0, 1, 2, 3), update=5):
    batch = Batch([PROMPTS[slot] for slot in slots], IMAGES[list(slots)])
    return SFTSharpening(options).collect(policy, policy, score, batch, Seeds(11, update, slots))


def assert_same(first, second, tolerance=0.0):
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        torch.testing.assert_close(value, second.tensors()[name], atol=tolerance, rtol=tolerance, msg=name)


def walked(policy, slot, t_index, eps, steps, prompt=None):
    """States and the images they predict, by diffusers' own scheduler and UNet: a branch worked by hand."""
    scheduler = type(policy._pipeline.scheduler).from_config(policy._pipeline.scheduler.config)
    scheduler.set_timesteps(6)
    condition = policy.encode([PROMPTS[slot]]) if prompt is None else prompt
    added = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
    x0 = policy.encode_images(IMAGES[slot])
    x = scheduler.add_noise(x0, eps[None], scheduler.timesteps[t_index][None])
    states, images = [], []
    for t in scheduler.timesteps[t_index : t_index + steps]:
        with torch.no_grad():
            output = policy.denoiser(x, t, condition.prompt_embeds, added_cond_kwargs=added).sample
        states.append(x[0])
        step = scheduler.step(output, t, x)
        images.append(policy.decode(step.pred_original_sample))
        x = step.prev_sample
    return torch.stack(states), np.concatenate(images)


def test_registered_with_its_options():
    method = load_method("sft")
    assert isinstance(method, SFTSharpening)
    assert (method.options.data, method.options.rewarded) == ("images", True)
    assert OPTIONS.groups_per_prompt == 2


@pytest.mark.parametrize("steps", [1, 2])
def test_algorithm_1_by_hand(policy, brightness, steps):
    """Winner, states, targets and path rewards of each group, from seeds, diffusers and the reward alone."""
    experience = collect(policy, brightness, replace(OPTIONS, branch_steps=steps))
    grid = policy.timesteps(6).tolist()
    for g in range(8):
        slot, k = divmod(g, 2)
        t_index = grid.index(int(experience.timesteps[g, 0]))
        assert t_index // 3 == k  # one in each half of the grid
        noises = [noise((8, 8, 8), 11, "branch", 5, slot, k, i) for i in range(3)]
        paths = [walked(policy, slot, t_index, eps, steps) for eps in noises]
        rewards = [brightness(images, [""] * len(images)).values.mean() for _, images in paths]
        assert experience.path_rewards[g].tolist() == pytest.approx(rewards, abs=0.02)
        winner = int(np.argmax(rewards))
        states, count = paths[winner][0], len(paths[winner][0])
        assert experience.mask[g].tolist() == [i < count for i in range(steps)]
        torch.testing.assert_close(experience.x_t[g, 0, :count], states, atol=2e-3, rtol=1e-3)
        assert torch.equal(experience.target[g, 0], noises[winner].expand(steps, 8, 8, 8))
    assert experience.weights.tolist() == [[1.0]] * 8
    assert experience.x_t.shape[1] == 1


def test_account(policy, brightness):
    policy.denoiser.requires_grad_(True)
    seen, calls = [], []
    policy.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))

    def counted(images, prompts):
        calls.append(list(prompts))
        return brightness(images, prompts)

    experience = collect(policy, counted)
    states = 3 * int(experience.mask.sum())
    assert experience.nfe == sum(seen) == experience.images_scored == states
    owners = [PROMPTS[g // 2] for g in range(8) for _ in range(3 * int(experience.mask[g].sum()))]
    assert calls == [owners]
    assert set(experience.seconds) == {"encode", "branch", "decode", "reward"}
    for name, value in experience.tensors().items():
        assert not value.requires_grad, name
        assert not value.is_inference(), name


def test_branches_are_compared_within_an_image_and_timestep(policy):
    """Rewards that differ by image and timestep alone leave the choice to what a branch adds."""
    bonus = iter(np.random.default_rng(1).random(1000))

    def score(images, prompts):
        first = {prompt: 1000.0 * place for place, prompt in enumerate(PROMPTS)}
        return Scores(np.array([first[p] + next(bonus) for p in prompts], np.float32))

    experience = collect(policy, score, replace(OPTIONS, branch_steps=1))
    best = experience.path_rewards.argmax(1).tolist()
    assert len(set(best)) > 1
    for g, i in enumerate(best):
        assert torch.equal(experience.target[g, 0, 0], noise((8, 8, 8), 11, "branch", 5, g // 2, g % 2, i))


def test_temperature_keeps_all_branches_with_their_weights(policy, brightness):
    sharp = collect(policy, brightness)
    soft = collect(policy, brightness, replace(OPTIONS, temperature=0.5))
    assert soft.x_t.shape == (8, 3, 2, 8, 8, 8)
    shares = np.exp(soft.path_rewards.double().numpy() / 0.5)
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(soft.weights.numpy(), shares, rtol=1e-4)
    rows = torch.arange(8)
    assert torch.equal(soft.x_t[rows, sharp.path_rewards.argmax(1)], sharp.x_t[:, 0])
    gain = (shares * soft.path_rewards.numpy()).sum(1) - soft.path_rewards.numpy().mean(1)
    np.testing.assert_allclose(soft.statistics()["reward_gain"].numpy(), gain, atol=1e-4)
    top = sharp.path_rewards.max(1).values - sharp.path_rewards.mean(1)
    torch.testing.assert_close(sharp.statistics()["reward_gain"], top)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_eq_9_by_hand(policy, brightness, temperature, gamma):
    options = replace(OPTIONS, temperature=temperature, snr_gamma=gamma)
    experience = collect(policy, brightness, options)
    assert not experience.mask.all()  # some branch reaches the grid's end
    clean = policy._pipeline.scheduler.alphas_cumprod.double().numpy()
    terms, errors = [], []
    for g in range(8):
        count = int(experience.mask[g].sum())
        term = error = 0.0
        for i in range(experience.x_t.shape[1]):
            for T in range(count):
                t = experience.timesteps[g, T]
                condition = experience.condition.index([int(experience.group_prompt[g])])
                with torch.no_grad():
                    eps = policy.predict(experience.x_t[g, i, T][None], t[None], condition).eps[0].numpy()
                difference = np.mean((eps - experience.target[g, i, T].numpy()) ** 2, dtype=np.float64)
                snr = clean[t] / (1 - clean[t])
                omega = (min(snr, gamma) / snr if gamma else 1.0) / count
                term += experience.weights[g, i].item() * omega * difference
                error += experience.weights[g, i].item() / count * difference
        terms.append(term)
        errors.append(error)
    found = SFTSharpening(options).loss(policy, experience)
    assert found.value.item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert found.metrics["error"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found.metrics["reward"] == pytest.approx(experience.path_rewards.mean().item())
    assert found.metrics["reward_spread"] == pytest.approx(
        np.std(experience.path_rewards.numpy(), axis=1, ddof=1).mean(), rel=1e-4
    )


def test_both_targets_at_every_state(policy, brightness):
    initial, state = (collect(policy, brightness, replace(OPTIONS, target=t)) for t in ("initial", "state"))
    assert torch.equal(initial.x_t, state.x_t)
    torch.testing.assert_close(state.target[:, :, 0], initial.target[:, :, 0], atol=5e-3, rtol=1e-3)
    x0 = policy.encode_images(IMAGES[:, 0])
    with_second = initial.mask[:, 1].nonzero().flatten().tolist()
    assert len(with_second) > 1
    for g in with_second:
        clean = policy._pipeline.scheduler.alphas_cumprod[state.timesteps[g, 1]]
        expected = (state.x_t[g, 0, 1] - clean.sqrt() * x0[g // 2]) / (1 - clean).sqrt()
        torch.testing.assert_close(state.target[g, 0, 1], expected, atol=5e-3, rtol=1e-3)
        assert (state.target[g, 0, 1] - initial.target[g, 0, 1]).abs().max() > 0.05


def test_one_branch_is_fine_tuning_on_the_grid(policy, brightness):
    """Table 2's n = 1: the image's own noised state, nothing chosen."""
    options = replace(OPTIONS, branches=1, branch_steps=1)
    experience = collect(policy, brightness, options)
    x0 = policy.encode_images(IMAGES[:, 0])
    for g in range(8):
        eps = noise((8, 8, 8), 11, "branch", 5, g // 2, g % 2, 0)
        x_t = policy._pipeline.scheduler.add_noise(x0[g // 2][None], eps[None], experience.timesteps[g])
        torch.testing.assert_close(experience.x_t[g, 0], x_t, atol=1e-4, rtol=1e-4)
    found = SFTSharpening(options).loss(policy, experience)
    with torch.no_grad():
        assert found.value.item() == pytest.approx(state_errors(policy, experience).mean().item(), rel=1e-5)
    assert found.metrics["reward_gain"] == 0
    assert "reward_spread" not in found.metrics  # one branch has none


def test_dropped_prompts_are_branched_and_learned_without_theirs(policy, brightness):
    asked = []

    def watched(images, prompts):
        asked.extend(prompts)
        return brightness(images, prompts)

    options = replace(OPTIONS, proportion_empty_prompts=1.0, branches=1)
    experience = collect(policy, watched, options, slots=(0,))
    empty = policy.uncondition(1)
    assert torch.equal(experience.condition.prompt_embeds, empty.prompt_embeds)
    t_index = policy.timesteps(6).tolist().index(int(experience.timesteps[0, 0]))
    states, _ = walked(policy, 0, t_index, noise((8, 8, 8), 11, "branch", 5, 0, 0, 0), 2, prompt=empty)
    torch.testing.assert_close(experience.x_t[0, 0], states, atol=2e-3, rtol=1e-3)
    assert set(asked) == {PROMPTS[0]}  # what an image should show is its own caption


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_four_images_are_four_times_one(policy, brightness, temperature):
    options = replace(OPTIONS, temperature=temperature, proportion_empty_prompts=0.3)
    together = collect(policy, brightness, options)
    apart = Experience.cat([collect(policy, brightness, options, slots=(slot,)) for slot in range(4)])
    assert_same(together, apart, tolerance=2e-3)
    assert together.nfe == apart.nfe
    assert_same(together, collect(policy, brightness, options))
    assert not torch.equal(together.target, collect(policy, brightness, options, update=6).target)
    method = SFTSharpening(options)
    whole = method.loss(policy, together).value
    parts = [method.loss(policy, together.select([2 * b, 2 * b + 1])).value for b in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reason", ["timeout", "not finite"])
def test_a_failed_score_drops_exactly_its_prompt(policy, brightness, reason):
    def failing(images, prompts):
        scores, index = brightness(images, prompts), list(prompts).index(PROMPTS[1]) + 1
        if reason == "not finite":
            scores.values[index] = np.nan
            return scores
        return Scores(scores.values, {index: reason})

    whole, experience = collect(policy, brightness), collect(policy, failing)
    assert experience.dropped == [(1, reason)]
    assert (experience.slots, experience.prompts) == ([0, 2, 3], [PROMPTS[0], PROMPTS[2], PROMPTS[3]])
    assert_same(experience, whole.select([0, 1, 4, 5, 6, 7]), tolerance=1e-5)

    def down(images, prompts):
        return Scores(np.zeros(len(images), np.float32), dict.fromkeys(range(len(images)), "unavailable"))

    assert collect(policy, down).groups == 0


def test_gradient_against_finite_differences(policy, brightness):
    """Through the UNet, in float64."""
    experience = collect(policy, brightness, replace(OPTIONS, temperature=1.0), slots=(0, 1))
    for name in ("x_t", "target", "weights"):
        setattr(experience, name, getattr(experience, name).double())
    policy.denoiser.double().requires_grad_(True)
    method = SFTSharpening(replace(OPTIONS, snr_gamma=1.0))
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


def test_three_steps_lower_the_loss(policy, brightness):
    experience, method = collect(policy, brightness), SFTSharpening(OPTIONS)
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
        ({"branches": 0}, "at least 1"),
        ({"branch_steps": 13}, "rollout_steps"),
        ({"timesteps_per_image": 13}, "rollout_steps"),
        ({"temperature": -1.0}, "at least 0"),
        ({"target": "noise"}, "initial, state"),
        ({"proportion_empty_prompts": 2.0}, "at most 1"),
    ],
)
def test_options_refused(change, said):
    with pytest.raises(OptionError, match=said) as refused:
        SFTOptions(**change)
    assert refused.value.option == next(iter(change))


def test_examples_without_an_image_are_refused(policy, brightness):
    batch = Batch(PROMPTS[:2], np.zeros((2, 0, 0, 0, 3), np.uint8))
    with pytest.raises(ValueError, match="one image of each prompt"):
        SFTSharpening().collect(policy, policy, brightness, batch, Seeds(0, 0, (0, 1)))
