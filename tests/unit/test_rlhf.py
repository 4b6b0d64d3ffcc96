"""RLHF sharpening's two hooks: what a rollout collects, and the loss over it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpening.data.source import Batch
from sharpening.methods.base import Seeds
from sharpening.methods.pairs import PairExperience, pair_errors
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import OptionError, SharpeningOptions
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.seeds import generator, noise

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
OPTIONS = SharpeningOptions(
    branches=3, branch_steps=2, rollout_steps=6, timesteps_per_rollout=3, reward_scale=0.3, snr_gamma=0.0
)  # fmt: skip


def collect(policy, score, options=OPTIONS, slots=(0, 1, 2, 3), update=5, reference=None):
    prompts = [PROMPTS[slot % 4] for slot in slots]
    reference = reference or policy.frozen_copy()
    seeds = Seeds(11, update, slots)
    return RLHFSharpening(options).collect(policy, reference, score, Batch.of_prompts(prompts), seeds)


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


def test_shapes_and_account(policy, brightness):
    experience = collect(policy, brightness)
    shapes = {name: tuple(value.shape) for name, value in experience.tensors().items()}
    assert shapes == {
        "group_prompt": (12,),
        "x_t": (12, 2, 2, 8, 8, 8),
        "timesteps": (12, 2),
        "mask": (12, 2),
        "target": (12, 2, 2, 8, 8, 8),
        "reference_error": (12, 2, 2),
        "reward": (12, 2),
        "path_rewards": (12, 3),
        "condition.prompt_embeds": (4, 16, 32),
        "condition.pooled": (4, 16),
        "condition.time_ids": (4, 6),
    }
    assert experience.group_prompt.tolist() == [g // 3 for g in range(12)]
    assert (experience.prompts, experience.slots, experience.update) == (PROMPTS, [0, 1, 2, 3], 5)
    states = int(experience.mask.sum())
    assert experience.images_scored == 3 * states
    assert experience.nfe == 4 * 3 * 6 + 3 * states + 2 * states  # generate, branch, reference
    assert set(experience.seconds) == {"generate", "branch", "decode", "reward", "reference"}
    assert torch.equal(experience.reward[:, 0], experience.path_rewards.max(1).values)
    assert torch.equal(experience.reward[:, 1], experience.path_rewards.min(1).values)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_nfe_is_what_reached_the_unet(policy, brightness, guidance_scale):
    reference, seen = policy.frozen_copy(), []
    for model in (policy, reference):
        model.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    experience = collect(policy, brightness, replace(OPTIONS, guidance_scale=guidance_scale), reference=reference)
    assert experience.nfe == sum(seen)
    states = int(experience.mask.sum())
    assert sum(seen) == (2 if guidance_scale > 1 else 1) * (4 * 3 * 6 + 3 * states) + 2 * states


def test_rollouts_keep_no_graph(policy, brightness):
    policy.denoiser.requires_grad_(True)
    experience = collect(policy, brightness)
    for name, value in experience.tensors().items():
        assert not value.requires_grad, name
        assert value.grad_fn is None, name
        assert not value.is_inference(), name  # or the learner could not use it


def test_collect_is_a_function_of_its_seeds(policy, brightness):
    first = collect(policy, brightness)
    assert_same(first, collect(policy, brightness))
    other = collect(policy, brightness, update=6)
    assert not torch.equal(first.x_t, other.x_t)
    assert not torch.equal(first.timesteps, other.timesteps)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_four_prompts_are_four_times_one(policy, brightness, temperature):
    options = replace(OPTIONS, temperature=temperature)
    together = collect(policy, brightness, options)
    apart = PairExperience.cat([collect(policy, brightness, options, slots=(slot,)) for slot in range(4)])
    assert_same(together, apart, tolerance=1e-3)
    assert torch.equal(together.timesteps, apart.timesteps)
    assert together.nfe == apart.nfe
    perturb(policy)
    method = RLHFSharpening(options)
    whole = method.loss(policy, together)
    parts = [method.loss(policy, together.select(torch.arange(3 * b, 3 * b + 3))) for b in range(4)]
    torch.testing.assert_close(whole.value, torch.stack([part.value for part in parts]).mean(), rtol=1e-4, atol=1e-5)
    for name, value in whole.metrics.items():
        assert value == pytest.approx(np.mean([part.metrics[name] for part in parts]), rel=1e-4, abs=1e-5), name


def test_timesteps_lie_one_in_each_stratum(policy, brightness):
    experience = collect(policy, brightness)
    grid = policy.timesteps(6).tolist()
    places = torch.tensor([grid.index(t) for t in experience.timesteps[:, 0].tolist()]).view(4, 3)
    assert torch.equal(places // 2, torch.tensor([[0, 1, 2]] * 4))
    assert len({tuple(row) for row in places.tolist()}) > 1  # each prompt its own
    assert torch.equal(experience.mask[:, 1], places.flatten() < 5)


def failing(score, prompt, value=np.nan, reason=None):
    def wrapped(images, prompts):
        scores = score(images, prompts)
        index = list(prompts).index(prompt)  # one image of that prompt
        if reason is None:
            scores.values[index] = value
            return scores
        return Scores(scores.values, {index: reason})

    return wrapped


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"value": np.nan}, "not finite"),
        ({"value": -np.inf}, "not finite"),
        ({"reason": "timeout"}, "timeout"),
        ({"reason": "rejected"}, "rejected"),
    ],
)
def test_a_failed_score_drops_exactly_its_prompt(policy, brightness, fault, reason):
    slots = (4, 5, 6, 7)
    whole = collect(policy, brightness, slots=slots)
    experience = collect(policy, failing(brightness, PROMPTS[1], **fault), slots=slots)
    assert experience.dropped == [(5, reason)]
    assert experience.slots == [4, 6, 7]
    assert experience.prompts == [PROMPTS[0], PROMPTS[2], PROMPTS[3]]
    kept = whole.select([0, 1, 2, 6, 7, 8, 9, 10, 11])
    assert_same(experience, kept, tolerance=1e-5)
    assert torch.isfinite(experience.reward).all()


def test_all_prompts_may_fail(policy, brightness):
    def down(images, prompts):
        return Scores(np.zeros(len(images), np.float32), dict.fromkeys(range(len(images)), "unavailable"))

    experience = collect(policy, down, replace(OPTIONS, temperature=1.0))
    assert experience.groups == 0
    assert experience.dropped == [(slot, "unavailable") for slot in range(4)]
    both = PairExperience.cat([experience, collect(policy, brightness, slots=(4, 5))])
    assert (both.groups, both.slots, both.group_prompt.tolist()) == (6, [4, 5], [0, 0, 0, 1, 1, 1])
    assert len(both.dropped) == 4


def test_a_wrong_number_of_scores_is_refused(policy):
    with pytest.raises(ValueError, match="shape"):
        collect(policy, lambda images, prompts: Scores(np.zeros(3, np.float32)))


def test_reward_is_asked_once_with_uint8_images_and_their_prompts(policy, brightness):
    calls = []

    def counted(images, prompts):
        calls.append((images, list(prompts)))
        return brightness(images, prompts)

    experience = collect(policy, counted)
    assert len(calls) == 1
    images, prompts = calls[0]
    assert images.dtype == np.uint8
    assert images.shape == (experience.images_scored, 64, 64, 3)
    states = experience.mask.sum(1).view(4, 3).sum(1) * 3
    assert prompts == [prompt for prompt, count in zip(PROMPTS, states.tolist(), strict=True) for _ in range(count)]


def initial_noise(slot, branch):
    return noise((8, 8, 8), 11, "latent", 5, slot, branch)


def levels(policy, timesteps):
    """α_t and σ_t straight from diffusers' table."""
    squared = policy._pipeline.scheduler.alphas_cumprod[timesteps]
    return squared.sqrt()[..., None, None, None], (1 - squared).sqrt()[..., None, None, None]


def test_targets_by_hand(policy, brightness):
    """Both targets at every state of winner and loser, from seeds, the sampler and α, σ alone."""
    initial = collect(policy, brightness)
    state = collect(policy, brightness, replace(OPTIONS, target="state"))
    assert torch.equal(initial.x_t, state.x_t)
    for g in range(12):
        slot, k = divmod(g, 3)
        eps = noise((8, 8, 8), 11, "branch", 5, slot, k)
        assert torch.equal(initial.target[g], eps.expand(2, 2, 8, 8, 8))
        condition = policy.encode([PROMPTS[slot]]).repeat_interleave(3)
        x0 = sample(policy, condition, torch.stack([initial_noise(slot, b) for b in range(3)]), 6)
        pair = [initial.path_rewards[g].argmax(), initial.path_rewards[g].argmin()]
        alpha_t, sigma_t = levels(policy, state.timesteps[g])
        for member in range(2):
            clean = x0[pair[member]]
            first = alpha_t[0] * clean + sigma_t[0] * eps
            torch.testing.assert_close(initial.x_t[g, member, 0], first, atol=1e-3, rtol=1e-3)
            expected = (state.x_t[g, member] - alpha_t * clean) / sigma_t
            valid = state.mask[g]
            torch.testing.assert_close(state.target[g, member][valid], expected[valid], atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(state.target[:, :, 0], initial.target[:, :, 0], atol=5e-3, rtol=1e-3)
    second = state.mask[:, 1]
    assert (state.target[second][:, :, 1] - initial.target[second][:, :, 1]).abs().max() > 0.05


def test_branch_noises(policy, brightness):
    one_state = replace(OPTIONS, branch_steps=1)
    shared = collect(policy, brightness, one_state)
    assert torch.equal(shared.target[:, 0], shared.target[:, 1])  # the same ε, on different images
    assert (shared.x_t[:, 0] != shared.x_t[:, 1]).any(dim=(1, 2, 3, 4)).all()

    fresh = collect(policy, brightness, replace(one_state, branch_noise="fresh"))
    own = collect(policy, brightness, replace(one_state, branch_noise="own"))
    for g in range(12):
        slot, k = divmod(g, 3)
        for experience in (fresh, own):
            branches = [experience.path_rewards[g].argmax(), experience.path_rewards[g].argmin()]
            for member, number in enumerate(branches):
                expected = {
                    id(fresh): lambda b, s=slot, k=k: noise((8, 8, 8), 11, "branch", 5, s, k, int(b)),
                    id(own): lambda b, s=slot: initial_noise(s, int(b)),
                }[id(experience)](number)
                assert torch.equal(experience.target[g, member, 0], expected)


def test_one_latent_for_all_branches(policy, brightness):
    options = replace(OPTIONS, latents_per_prompt=1, branch_noise="fresh", branch_steps=1)
    experience = collect(policy, brightness, options)
    assert experience.nfe == 4 * 6 + 12 * 3 + 12 * 2  # one image a prompt is generated
    alpha_t, sigma_t = levels(policy, experience.timesteps)
    x0 = (experience.x_t[:, :, 0] - sigma_t * experience.target[:, :, 0]) / alpha_t  # (12, 2, 8, 8, 8)
    small = experience.timesteps[:, 0] < 700  # where dividing by α does not blow up rounding
    torch.testing.assert_close(x0[small, 0], x0[small, 1], atol=1e-3, rtol=1e-3)
    assert (experience.target[:, 0] != experience.target[:, 1]).any()
    with pytest.raises(OptionError, match="fresh"):
        SharpeningOptions(latents_per_prompt=1, branch_noise="shared")


def test_loss_starts_at_log_2_and_its_first_step_prefers_winners(policy, brightness):
    method = RLHFSharpening(replace(OPTIONS, loss="dpo"))
    experience = collect(policy, brightness)
    policy.denoiser.requires_grad_(True)
    loss = method.loss(policy, experience)
    assert loss.value.item() == pytest.approx(np.log(2), abs=1e-4)
    loss.value.backward()
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in policy.denoiser.parameters()]).norm()
        for parameter in policy.denoiser.parameters():
            parameter.sub_(1e-3 * parameter.grad / norm)
    after = method.loss(policy, experience)
    assert after.value.item() < loss.value.item() - 1e-4
    assert after.metrics["log_ratio_winner"] > after.metrics["log_ratio_loser"]


@pytest.mark.parametrize("loss", ["dpo_margin", "dpo", "rebel"])
def test_loss_by_hand_from_the_errors(policy, brightness, loss):
    options = replace(OPTIONS, loss=loss, beta=50.0)
    experience = collect(policy, brightness)
    perturb(policy)
    value = RLHFSharpening(options).loss(policy, experience).value.item()
    terms = []
    for g in range(12):
        states = int(experience.mask[g].sum())
        condition = experience.condition.index([int(experience.group_prompt[g])])
        ratio = []
        for member in range(2):
            gains = []
            for i in range(states):
                with torch.no_grad():
                    eps = policy.predict(
                        experience.x_t[g, member, i][None], experience.timesteps[g, i][None], condition
                    )
                error = ((eps.eps[0] - experience.target[g, member, i]) ** 2).mean().item()
                gains.append(experience.reference_error[g, member, i].item() - error)
            ratio.append(sum(gains) / states)
        gap = (experience.reward[g, 0] - experience.reward[g, 1]).item()
        z = 50.0 * (ratio[0] - ratio[1]) - (0.0 if loss == "dpo" else 0.3 * gap)
        terms.append(z**2 if loss == "rebel" else np.logaddexp(0, -z))
    assert value == pytest.approx(np.mean(terms), rel=1e-3)


def test_reference_errors_are_the_references(policy, brightness):
    reference = policy.frozen_copy()
    perturb(policy)
    experience = collect(policy, brightness, reference=reference)
    with torch.no_grad():
        torch.testing.assert_close(experience.reference_error, pair_errors(reference, experience), rtol=1e-4, atol=1e-5)
        assert (pair_errors(policy, experience) - experience.reference_error).abs().max() > 1e-3
    assert (experience.reference_error[~experience.mask[:, None].expand(12, 2, 2)] == 0).all()


def test_gradient_of_the_whole_loss_against_finite_differences(policy, brightness):
    """Through the UNet, in float64."""
    experience = collect(policy, brightness, slots=(0, 1))
    for name in ("x_t", "target", "reference_error", "reward"):
        setattr(experience, name, getattr(experience, name).double())
    perturb(policy)
    policy.denoiser.double().requires_grad_(True)
    method = RLHFSharpening(replace(OPTIONS, beta=20.0))
    method.loss(policy, experience).value.backward()
    weights = [policy.denoiser.conv_in.weight, policy.denoiser.conv_out.bias, policy.denoiser.conv_out.weight]
    for weight in weights:
        place = int(weight.grad.abs().argmax())
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(method.loss(policy, experience).value.item())
        with torch.no_grad():
            weight.view(-1)[place] += 1e-5
        difference = (values[0] - values[1]) / 2e-5
        assert weight.grad.view(-1)[place].item() == pytest.approx(difference, rel=1e-4)


def test_guided_prediction_in_the_loss(policy, brightness):
    options = replace(OPTIONS, loss_guidance_scale=3.0)
    experience = collect(policy, brightness, options)
    plain = collect(policy, brightness)
    states = int(experience.mask.sum())
    assert experience.nfe == plain.nfe + 2 * states
    assert (experience.reference_error - plain.reference_error).abs().max() > 1e-3
    assert RLHFSharpening(replace(options, loss="dpo")).loss(policy, experience).value.item() == pytest.approx(
        np.log(2), abs=1e-3
    )


def test_bf16_rollouts_compare_errors_in_full_precision(policy, brightness):
    experience = collect(policy, brightness, replace(OPTIONS, rollout_precision="bf16"))
    assert experience.x_t.dtype == torch.float32
    assert experience.condition.prompt_embeds.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(pair_errors(policy, experience), experience.reference_error, rtol=1e-5, atol=1e-6)
    exact = collect(policy, brightness)
    assert 0 < (experience.path_rewards - exact.path_rewards).abs().max() < 2


def test_select_takes_prompts_along(policy, brightness):
    experience = collect(policy, brightness)
    part = experience.select([10, 4, 3])
    assert part.prompts == [PROMPTS[1], PROMPTS[3]]
    assert part.slots == [1, 3]
    assert part.group_prompt.tolist() == [1, 0, 0]
    assert torch.equal(part.condition.pooled, experience.condition.pooled[[1, 3]])
    assert torch.equal(part.x_t, experience.x_t[[10, 4, 3]])
    assert torch.equal(part.path_rewards, experience.path_rewards[[10, 4, 3]])
    assert (part.nfe, part.images_scored, part.seconds) == (0, 0, {})


def test_cat_refuses_different_updates_and_versions(policy, brightness):
    experience = collect(policy, brightness, slots=(0,))
    for change in ({"update": 6}, {"version": 2}):
        with pytest.raises(ValueError, match="share update and version"):
            PairExperience.cat([experience, replace(experience, **change)])


def test_gumbel_noise_is_each_prompts_own(policy, brightness):
    """Selection above λ = 0 draws from (update, slot, timestep), so a dropped prompt shifts nobody's draw."""
    method = RLHFSharpening(replace(OPTIONS, temperature=1.0, selection="timestep"))
    seeds = Seeds(11, 5, (4, 5, 6))
    all_three, without = method._gumbel(seeds), method._gumbel(Seeds(11, 5, (4, 6)))
    assert torch.equal(all_three[[0, 1, 2, 6, 7, 8]], without)
    expected = generator(11, "select", 5, 6, 1).gumbel(size=(2, 3))
    assert np.array_equal(all_three[7].numpy(), expected)
    together = RLHFSharpening(replace(OPTIONS, temperature=1.0))._gumbel(seeds)
    assert torch.equal(together[0], together[2])  # one draw a prompt
    assert not torch.equal(together[2], together[3])


def test_a_winner_is_one_for_all_timesteps_of_a_prompt_or_one_for_each(policy, brightness):
    together = collect(policy, brightness, replace(OPTIONS, selection="prompt"))
    apart = collect(policy, brightness, replace(OPTIONS, selection="timestep"))
    own = apart.path_rewards.view(4, 3, 3)
    shared = together.path_rewards.view(4, 3, 3)
    torch.testing.assert_close(shared, own.mean(1, keepdim=True).expand(4, 3, 3))
    torch.testing.assert_close(together.reward[:, 0].view(4, 3), own.mean(1).amax(-1)[:, None].expand(4, 3))
    torch.testing.assert_close(apart.reward[:, 1], own.flatten(0, 1).amin(-1))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("branch_noise", ["shared", "own"])
def test_images_may_decide_instead_of_paths(policy, brightness, steps, branch_noise):
    """By hand: the rewards of the decoded x_0, and the states of the two that they pick; nothing else is evaluated."""
    options = replace(
        OPTIONS, selection="image", branch_steps=steps, branch_noise=branch_noise, timesteps_per_rollout=2
    )  # fmt: skip
    experience = collect(policy, brightness, options, slots=(2, 3))
    condition = policy.encode([PROMPTS[2], PROMPTS[3]])
    grid = policy.timesteps(6)
    counts = experience.mask.sum(1)
    for b, slot in enumerate((2, 3)):
        initial = torch.stack([noise(policy.latent_shape, 11, "latent", 5, slot, k) for k in range(3)])
        x0 = sample(policy, condition.index(torch.tensor([b] * 3)), initial, 6)
        rewards = torch.from_numpy(brightness(policy.decode(x0), [PROMPTS[slot]] * 3).values)
        pair = [int(rewards.argmax()), int(rewards.argmin())]
        for k in range(2):
            group = 2 * b + k
            torch.testing.assert_close(experience.path_rewards[group], rewards, atol=0.3, rtol=0)
            torch.testing.assert_close(experience.reward[group], experience.path_rewards[group][pair])
            eps = initial[pair] if branch_noise == "own" else noise(policy.latent_shape, 11, "branch", 5, slot, k)
            t = experience.timesteps[group, 0].expand(2)
            state = policy.add_noise(x0[pair], eps.expand(2, *x0.shape[1:]), t)
            torch.testing.assert_close(experience.x_t[group, :, 0], state, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(experience.target[group, :, 0], eps.expand_as(state))
            if counts[group] == 2:
                rows = condition.index(torch.tensor([b, b]))
                second = policy.step(state, t, policy.previous(t, 6), policy.predict(state, t, rows))
                torch.testing.assert_close(experience.x_t[group, :, 1], second, atol=1e-4, rtol=1e-4)
    assert grid[0] >= experience.timesteps.max()
    assert experience.images_scored == 2 * 3
    walked = 2 * int((counts - 1).sum())  # every state but a first one comes of a prediction
    assert experience.nfe == 2 * 3 * 6 + walked + 2 * int(counts.sum())


def test_one_image_has_nothing_to_choose_from():
    with pytest.raises(OptionError, match="image with latents_per_prompt 1 has one image"):
        replace(OPTIONS, selection="image", latents_per_prompt=1, branch_noise="fresh")


def test_the_winner_weight_adds_equation_9_on_the_winner(policy, brightness):
    experience = collect(policy, brightness, replace(OPTIONS, branch_steps=1))
    plain = RLHFSharpening(replace(OPTIONS, branch_steps=1)).loss(policy, experience).value
    anchored = RLHFSharpening(replace(OPTIONS, branch_steps=1, winner_weight=7.0)).loss(policy, experience).value
    # The policy is still the reference, whose errors the experience holds.
    torch.testing.assert_close(anchored, plain + 7.0 * experience.reference_error[:, 0].mean())


def test_states_weigh_by_their_signal_to_noise_ratio(policy, brightness):
    experience = collect(policy, brightness, replace(OPTIONS, branch_steps=1))
    gamma = 0.5
    # Another model than the reference, so that log ratios are not zero; by hand from the scheduler's own table.
    experience.reference_error = experience.reference_error + torch.rand(
        experience.reference_error.shape, generator=torch.Generator().manual_seed(0)
    )
    clean = policy._pipeline.scheduler.alphas_cumprod[experience.timesteps[:, 0]]
    omega = torch.minimum(torch.ones_like(clean), gamma * (1 - clean) / clean)
    assert omega.min() < 0.5 < omega.max()
    error = pair_errors(policy, experience)[:, :, 0]
    ratio = omega[:, None] * (experience.reference_error[:, :, 0] - error)
    gap = experience.reward[:, 0] - experience.reward[:, 1]
    margin = OPTIONS.beta * (ratio[:, 0] - ratio[:, 1]) - OPTIONS.reward_scale * gap
    expected = -torch.log(1 / (1 + torch.exp(-margin.double()))).mean()
    found = RLHFSharpening(replace(OPTIONS, branch_steps=1, snr_gamma=gamma)).loss(policy, experience)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-4)
    metrics = found.metrics
    assert metrics["log_ratio_winner"] == pytest.approx(ratio[:, 0].mean().item(), rel=1e-4)
