"""IterPO's two hooks and its rounds, over reward models simple enough to be worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sharpening.data.source import Batch
from sharpening.loop import learn
from sharpening.methods import load_method, options_class
from sharpening.methods.base import Experience, Seeds
from sharpening.methods.iterpo import IterPO
from sharpening.methods.ranking import rank_pairs
from sharpening.methods.reward_models import join, load_reward_models, pack, pairwise_accuracy, unpack
from sharpening.methods.rounds import InRounds, round_slots
from sharpening.options import OptionError, TrainingOptions
from sharpening.options.iterpo import IterPOOptions
from sharpening.rewards import load_reward
from sharpening.rewards.base import Scores
from sharpening.sampling import sample
from sharpening.seeds import noise
from sharpening.shapes.benchmark import excluded_prompts
from sharpening.shapes.ranked_scenes import draw_pair
from sharpening.shapes.render import render

PROMPTS = ["a red circle", "two squares", "a cross", "a triangle, 3"]
WEIGHTS = torch.tensor([[4.0, 0.0, 1.0], [0.0, 6.0, -1.0]])
CPU = torch.device("cpu")


class ChannelModels:
    """Two models, each linear in an image's mean red, green and blue; trained by pairwise cross-entropy."""

    names = ("warm", "green")

    def __init__(self, device):
        self.weights = WEIGHTS.clone().to(device)

    def rewards(self, images, prompts):
        assert len(images) == len(prompts)
        return self.weights.double() @ images.double().mean(dim=(2, 3)).T

    def retrain(self, pairs, steps, seed):
        means = torch.from_numpy(pairs.images).float().mean(dim=(2, 3)) / 255  # (N, 2, 3)
        weights = self.weights.clone().requires_grad_(True)
        optimizer = torch.optim.SGD([weights], lr=20.0)
        for _ in range(steps):
            optimizer.zero_grad()
            better, other = torch.einsum("mc,npc->pnm", weights, means)
            F.softplus(other - better).mean().backward()
            optimizer.step()
        self.weights = weights.detach()

    def state(self):
        return {"weights": self.weights}

    def load_state(self, state):
        self.weights = state["weights"].clone()


OPTIONS = IterPOOptions(
    reward_models=f"{__name__}:ChannelModels", rollout_steps=8, satisfied=3.185, loss_scale=0.1, outer_rounds=3,
    round_prompts=4, round_samples=3, round_steps=20,
)  # fmt: skip


def collect(policy, score, options=OPTIONS, slots=(0, 1, 2, 3), update=5):
    batch = Batch.of_prompts([PROMPTS[slot % 4] for slot in slots])
    return IterPO(options).collect(policy, policy.frozen_copy(), score, batch, Seeds(11, update, slots))


def begin(policy, score, state=b"", update=2):
    batch, seeds = Batch.of_prompts(PROMPTS), Seeds(11, update, (0, 1, 2, 3))
    return IterPO(OPTIONS).begin_round(policy, policy.frozen_copy(), score, batch, seeds, state)


def perturb(policy, scale=0.02):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))


def test_shapes_and_account(policy, brightness):
    seen = []
    policy.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    experience = collect(policy, brightness)
    shapes = {name: tuple(value.shape) for name, value in experience.tensors().items() if "condition" not in name}
    assert shapes == {"group_prompt": (4,), "path_rewards": (4, 1), "x_t": (4, 8, 8, 8), "timesteps": (4,)}
    grid = policy.timesteps(8).tolist()
    places = [grid.index(t) for t in experience.timesteps.tolist()]
    assert set(places) == {6, 7}  # the last quarter of 8 steps, each prompt its own
    assert experience.nfe == sum(seen) == sum(places) + 4  # the steps down, and x̂_0 at the state reached
    assert (experience.images_scored, experience.prompts, experience.slots) == (4, PROMPTS, [0, 1, 2, 3])
    assert set(experience.seconds) == {"generate", "decode", "reward"}
    for name, value in experience.tensors().items():
        assert not value.requires_grad, name
        assert not value.is_inference(), name


def test_the_published_grid_gives_steps_30_to_39(policy):
    method = IterPO(replace(OPTIONS, rollout_steps=40))
    places = method._places(Seeds(0, 0, tuple(range(200))))
    assert (places.min(), places.max()) == (30, 39)


def test_states_are_the_samplers(policy, brightness):
    """Sampling on from each collected state ends where the full sampler ends; its score is that of x̂_0's image."""
    experience = collect(policy, brightness)
    grid = policy.timesteps(8).tolist()
    for slot, prompt in enumerate(PROMPTS):
        condition = policy.encode([prompt])
        expected = sample(policy, condition, noise((8, 8, 8), 11, "latent", 5, slot)[None], 8)
        x_t, place = experience.x_t[slot : slot + 1], grid.index(int(experience.timesteps[slot]))
        with torch.no_grad():
            x0 = policy.predict(x_t, experience.timesteps[slot : slot + 1], condition).x0
            for t in grid[place:]:
                rows = torch.tensor([t])
                x_t = policy.step(x_t, rows, policy.previous(rows, 8), policy.predict(x_t, rows, condition))
        torch.testing.assert_close(x_t, expected, atol=1e-3, rtol=1e-3)
        score = brightness(policy.decode(x0), [prompt]).values[0]
        assert experience.path_rewards[slot, 0].item() == pytest.approx(score, abs=1e-2)


def test_loss_by_an_independent_computation(policy, brightness):
    """`λ Σ_k relu(3.185 − r_k)` from diffusers' UNet output, scheduler table and VAE, in numpy from the pixels on."""
    experience = collect(policy, brightness)
    perturb(policy)
    loss = IterPO(OPTIONS).loss(policy, experience)
    pipeline, terms, rewards = policy._pipeline, [], []
    for g in range(4):
        t = experience.timesteps[g]
        condition = experience.condition.index([g])
        with torch.no_grad():
            added = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
            eps = policy.denoiser(
                experience.x_t[g : g + 1], t, encoder_hidden_states=condition.prompt_embeds, added_cond_kwargs=added
            ).sample
            squared = pipeline.scheduler.alphas_cumprod[t]
            x0 = (experience.x_t[g : g + 1] - (1 - squared).sqrt() * eps) / squared.sqrt()
            image = pipeline.vae.decode(x0 / pipeline.vae.config.scaling_factor).sample[0].numpy()
        means = np.clip(image / 2 + 0.5, 0, 1).mean(axis=(1, 2))
        rewards.append([4 * means[0] + means[2], 6 * means[1] - means[2]])
        terms.append(0.1 * sum(max(0.0, 3.185 - reward) for reward in rewards[-1]))
    assert loss.value.item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert loss.metrics["reward_warm"] == pytest.approx(np.mean(rewards, axis=0)[0], rel=1e-4)
    assert loss.metrics["reward_green"] == pytest.approx(np.mean(rewards, axis=0)[1], rel=1e-4)
    assert loss.metrics["satisfied"] == pytest.approx(np.mean(np.array(rewards) >= 3.185))
    assert 0 < loss.metrics["satisfied"] < 1


def test_satisfied_models_pull_no_more(policy, brightness):
    policy.denoiser.requires_grad_(True)
    loss = IterPO(replace(OPTIONS, satisfied=-5.0)).loss(policy, collect(policy, brightness))
    loss.value.backward()
    assert loss.value.item() == 0
    assert loss.metrics["satisfied"] == 1
    assert all((p.grad == 0).all() for p in policy.denoiser.parameters() if p.grad is not None)


def test_gradient_reaches_the_denoiser_alone(policy, brightness):
    policy.denoiser.requires_grad_(True)
    method = IterPO(OPTIONS)
    method.loss(policy, collect(policy, brightness)).value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.denoiser.parameters())
    frozen = (policy.vae, policy._pipeline.text_encoder, policy._pipeline.text_encoder_2)
    assert all(parameter.grad is None for module in frozen for parameter in module.parameters())
    assert not method.models(CPU).weights.requires_grad


def test_gradient_against_finite_differences(policy, brightness):
    """Through UNet, decoder and reward models, in float64 but for the pixels, which are float32."""
    experience = collect(policy, brightness, slots=(0, 1))
    experience.x_t = experience.x_t.double()
    policy.vae.double()
    policy.denoiser.double().requires_grad_(True)
    method = IterPO(replace(OPTIONS, satisfied=10.0))
    method.loss(policy, experience).value.backward()
    for weight in (policy.denoiser.conv_out.bias, policy.denoiser.conv_out.weight):
        place = int(weight.grad.abs().argmax())
        values = []
        for step in (1e-3, -2e-3):
            with torch.no_grad():
                weight.view(-1)[place] += step
                values.append(method.loss(policy, experience).value.item())
        with torch.no_grad():
            weight.view(-1)[place] += 1e-3
        assert weight.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2)


def test_four_prompts_are_four_times_one(policy, brightness):
    together = collect(policy, brightness)
    apart = Experience.cat([collect(policy, brightness, slots=(slot,)) for slot in range(4)])
    for name, value in together.tensors().items():
        torch.testing.assert_close(value, apart.tensors()[name], atol=1e-3, rtol=1e-3, msg=name)
    assert (together.nfe, together.images_scored) == (apart.nfe, apart.images_scored)
    method = IterPO(OPTIONS)
    parts = [method.loss(policy, together.select([b])).value for b in range(4)]
    torch.testing.assert_close(method.loss(policy, together).value, torch.stack(parts).mean())
    again = collect(policy, brightness)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in together.tensors().items())


def test_a_failed_score_drops_exactly_its_prompt(policy, brightness):
    def failing(images, prompts):
        scores = brightness(images, prompts)
        scores.values[2] = np.inf
        return Scores(scores.values, {0: "timeout"})

    whole, experience = collect(policy, brightness), collect(policy, failing)
    assert experience.dropped == [(0, "timeout"), (2, "not finite")]
    assert (experience.slots, experience.prompts) == ([1, 3], [PROMPTS[1], PROMPTS[3]])
    kept = whole.select([1, 3])
    assert all(torch.equal(value, kept.tensors()[name]) for name, value in experience.tensors().items())


def test_three_steps_lower_the_loss(policy, brightness):
    method, experience = IterPO(replace(OPTIONS, satisfied=10.0)), collect(policy, brightness)
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters(), lr=1e-2)
    training = TrainingOptions(train_batch_size=3)
    rows = [learn(policy, method, experience, optimizer, training)["loss"] for _ in range(3)]
    losses = [*rows, method.loss(policy, experience).value.item()]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-3


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_rounds_are_spread_evenly():
    method = IterPO(OPTIONS)
    assert isinstance(method, InRounds)
    assert not isinstance(load_method("rlhf"), InRounds)
    assert [u for u in range(10) if method.round_examples(u, 10)] == [3, 6]
    assert method.round_examples(3, 10) == 4
    assert round_slots(method, 3, 10) == (0, 1, 2, 3)
    assert round_slots(method, 4, 10) == round_slots(load_method("rlhf"), 3, 10) == ()
    assert not any(IterPO(replace(OPTIONS, outer_rounds=1)).round_examples(u, 10) for u in range(10))
    assert [u for u in range(2) if method.round_examples(u, 2)] == [1]  # fewer updates than rounds


def test_a_round_learns_the_rewards_ranking(policy):
    """The reward prefers images with little green, of which the models know nothing; a round teaches them."""

    def not_green(images, prompts):
        return Scores(-images[..., 1].mean(axis=(1, 2), dtype=np.float64).astype(np.float32))

    first = begin(policy, not_green)
    weights, pairs = unpack(first.state)
    expected = rank_pairs(policy, not_green, PROMPTS, Seeds(11, 2, (0, 1, 2, 3)), 3, OPTIONS)
    assert np.array_equal(pairs.images, expected.batch.images)
    assert pairs.prompts == PROMPTS
    green = pairs.images[..., 1].mean(axis=(2, 3))
    assert (green[:, 0] < green[:, 1]).all()
    models = load_reward_models(OPTIONS.reward_models, CPU)
    assert first.metrics["accuracy_before"] == pairwise_accuracy(models, pairs, CPU)
    models.retrain(pairs, OPTIONS.round_steps, 0)
    torch.testing.assert_close(weights["weights"], models.weights)
    assert (weights["weights"][:, 1] < WEIGHTS[:, 1]).all()
    assert first.metrics["accuracy_after"] > first.metrics["accuracy_before"]
    assert (first.nfe, first.images_scored, first.metrics["pairs"]) == (4 * 3 * 8, 12, 4.0)
    assert set(first.seconds) == {"generate", "decode", "reward", "retrain"}


def test_rounds_extend_the_data_and_repeat_themselves(policy, brightness):
    first = begin(policy, brightness)
    second = begin(policy, brightness, first.state, update=4)
    weights, pairs = unpack(second.state)
    before = unpack(first.state)
    assert len(pairs) == 2 * len(before[1]) == 8
    assert np.array_equal(pairs.images[:4], before[1].images)
    assert not np.array_equal(pairs.images[4:], before[1].images)
    models = load_reward_models(OPTIONS.reward_models, CPU)
    models.load_state(before[0])
    models.retrain(pairs, OPTIONS.round_steps, 0)
    torch.testing.assert_close(weights["weights"], models.weights)
    assert begin(policy, brightness, first.state, update=4).state == second.state  # so a killed actor's can be redone


def test_loss_judges_by_the_state_taken(policy, brightness):
    experience, method = collect(policy, brightness), IterPO(replace(OPTIONS, satisfied=10.0))
    before = method.loss(policy, experience)
    taught = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    method.take(pack({"weights": taught}, Batch.of_prompts([])))
    after = method.loss(policy, experience)
    assert after.metrics["reward_warm"] != pytest.approx(before.metrics["reward_warm"])
    assert after.metrics["reward_green"] == 0
    method.take(b"")
    assert method.loss(policy, experience).value.item() == before.value.item()


def test_failed_and_tied_prompts_give_no_pair(policy, brightness):
    def failing(images, prompts):
        values = brightness(images, prompts).values
        values[3:6] = 50.0  # the second prompt's images all score the same
        return Scores(values, {1: "timeout"})

    made = begin(policy, failing)
    assert made.dropped == [(0, "timeout")]
    assert unpack(made.state)[1].prompts == PROMPTS[2:]

    def down(images, prompts):
        return Scores(np.zeros(len(images), np.float32), dict.fromkeys(range(len(images)), "unavailable"))

    nothing = begin(policy, down)
    weights, pairs = unpack(nothing.state)
    assert (len(pairs), len(nothing.dropped), nothing.metrics) == (0, 4, {"pairs": 0.0})
    assert torch.equal(weights["weights"], WEIGHTS)


def test_state_comes_back_whole():
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 6, 3), np.uint8)
    pairs = Batch(["käse", 'a "cross"'], images)
    weights = {"a.b": torch.arange(6.0).view(2, 3), "c": torch.tensor(2)}
    back, same = unpack(pack(weights, pairs))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value) for name, value in weights.items())
    assert same.prompts == pairs.prompts
    assert np.array_equal(same.images, images)
    assert len(unpack(b"")[1]) == 0
    both = join(unpack(b"")[1], pairs)
    assert np.array_equal(join(both, pairs).images, np.concatenate([images, images]))


def test_pairwise_accuracy_by_hand():
    images = np.zeros((3, 2, 1, 1, 3), np.uint8)
    images[0, 0, ..., 0] = 100  # warm prefers the first by its red
    images[1, 1, ..., 0] = 100  # and here the second, which is wrong
    images[2, 1, ..., 1] = 100  # green prefers the second, which is wrong, warm sees no difference
    # warm is right in 1 of 3, green in none: it sees no difference in the first two.
    accuracy = pairwise_accuracy(ChannelModels(CPU), Batch(["a", "b", "c"], images), CPU, batch_size=2)
    assert accuracy == pytest.approx(1 / 6)


# -- the embedded world's models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renders():
    """Ranked pairs of scenes, as a batch of preference pairs."""
    rng = np.random.default_rng(0)
    drawn = [pair for pair in (draw_pair("attribute", rng, excluded_prompts()) for _ in range(9)) if pair.captions[0]]
    images = np.stack([np.stack([render(scene, supersample=1) for scene in pair.scenes]) for pair in drawn])
    return Batch([pair.captions[0][0] for pair in drawn], images)


def test_embedded_models_are_the_served_scorers_with_a_gradient(renders):
    models = load_reward_models("embedded", CPU)
    images = renders.images[:, 0]
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).requires_grad_(True)
    rewards = models.rewards(pixels, renders.prompts)
    assert models.names == ("attribute", "spatial", "non_spatial")
    for name, row in zip(models.names, rewards.detach().numpy(), strict=True):
        served = load_reward(f"embedded-{name}")(images, renders.prompts).values
        np.testing.assert_allclose(row, served, atol=1e-3)
    rewards.sum().backward()
    assert (pixels.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_embedded_models_are_retrained_on_a_ranking_and_keep_it_in_their_state(renders):
    backwards = Batch(renders.prompts, renders.images[:, ::-1].copy())
    models, again = load_reward_models("embedded", CPU), load_reward_models("embedded", CPU)
    before = pairwise_accuracy(models, backwards, CPU)
    for one in (models, again):
        one.retrain(backwards, 30, seed=3)
    assert before < 0.5 < 0.9 < pairwise_accuracy(models, backwards, CPU)
    fresh = load_reward_models("embedded", CPU)
    fresh.load_state(unpack(pack(models.state(), backwards))[0])
    pixels = torch.from_numpy(renders.images[:, 0]).permute(0, 3, 1, 2).float() / 255
    rewards = models.rewards(pixels, renders.prompts)
    assert not rewards.requires_grad
    assert torch.equal(rewards, again.rewards(pixels, renders.prompts))
    assert torch.equal(rewards, fresh.rewards(pixels, renders.prompts))


def test_options_and_registration():
    assert options_class("iterpo") is IterPOOptions
    assert isinstance(load_method("iterpo"), IterPO)
    assert IterPOOptions().groups_per_prompt == 1
    with pytest.raises(OptionError, match="round_samples: must be at least 2"):
        IterPOOptions(round_samples=1)
    with pytest.raises(OptionError, match="free_share: must be less than 1"):
        IterPOOptions(free_share=1.0)
    with pytest.raises(OptionError, match="loss_scale: must be greater than 0"):
        IterPOOptions(loss_scale=0.0)
    with pytest.raises(ValueError, match="unknown reward models 'nothing'"):
        load_reward_models("nothing", CPU)
    with pytest.raises(ValueError, match="cannot be imported"):
        load_reward_models("sharpening.methods:Nothing", CPU)
