"""The world of scalars: its closed form by independent integration, its policy, and what moves it towards p*."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.integrate import quad
from scipy.stats import norm, wasserstein_distance

from sharpening import losses
from sharpening.mixture.experiments import (
    SFT,
    SHARPENING,
    SLOPE,
    best_of,
    ddpo,
    draw,
    guided,
    measure,
    particles,
    sft,
    sharpened,
)
from sharpening.mixture.law import Mixture, World, default_world, distance, shape
from sharpening.mixture.policy import LIMIT, SCHEDULER, MixturePolicy, linear_reward, scalars
from sharpening.options.sft import SFTOptions
from sharpening.path_integral import select
from sharpening.seeds import generator

WORLD = default_world()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Batches of a few hundred scalars are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def latents(x):
    return torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 1, 1)


def shifted(law, distance_):
    return Mixture(law.weights, law.means + distance_, law.deviations)


# -- the closed form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "curvature"), [(1.0, 0.0), (-0.7, 0.0), (2.0, 1.5), (0.4, -0.5)])
def test_tilt_is_the_density_times_the_exponential(slope, curvature):
    law = Mixture(np.array([0.8, 0.2]), np.array([-1.0, 1.0]), np.array([0.5, 0.3]))
    points = np.linspace(-4, 4, 17)

    def product(x):
        return law.density(np.atleast_1d(x)) * np.exp(slope * x - curvature * np.square(x) / 2)

    total = quad(lambda x: product(x)[0], -12, 12)[0]
    assert law.tilt(slope, curvature).density(points) == pytest.approx(product(points) / total, rel=1e-6)


def test_linear_tilt_by_hand():
    tilted = WORLD.laws["left"].tilt(1.0)
    odds = 0.2 / 0.8 * np.exp(2)  # both components gain exp(s²/2), the upper one exp(μ_2 − μ_1) = e² more
    assert tilted.weights[1] == pytest.approx(odds / (1 + odds))
    assert tilted.means == pytest.approx([-0.75, 1.25])
    assert tilted.deviations == pytest.approx([0.5, 0.5])


def test_the_optimum_beats_its_neighbours():
    """`E_q[x] − β KL(q ‖ p)`, integrated numerically, is largest at the tilt 1/β."""
    law, beta = WORLD.laws["left"], 0.8
    x = np.linspace(-8, 8, 4001)

    def objective(q):
        density = q.density(x)
        return np.trapezoid(density * (x - beta * np.log(density / law.density(x))), x)

    best = objective(law.tilt(1 / beta))
    assert best > objective(law.tilt(1.15 / beta)) + 1e-3
    assert best > objective(law.tilt(0.85 / beta)) + 1e-3
    assert best > objective(shifted(law, law.tilt(1 / beta).mean - law.mean)) + 0.1


def test_a_curvature_without_a_law_is_refused():
    with pytest.raises(ValueError, match="no tilted law"):
        WORLD.laws["left"].tilt(0.0, -4.0)


def test_distance_and_matching():
    law = WORLD.laws["left"]
    assert distance(law.quantiles(1000), law) < 2e-3
    assert distance(law.quantiles(1000) + 0.3, law) == pytest.approx(0.3, abs=2e-3)
    assert norm.cdf(law.quantiles(7)[:, None], law.means, law.deviations) @ law.weights == pytest.approx(
        (np.arange(7) + 0.5) / 7, abs=1e-6
    )
    assert WORLD.tilt_to(WORLD.tilt(0.6).mean) == pytest.approx(0.6)
    assert shape(np.array([-3.0, -1.0, 2.0, 2.0, 2.0])).upper == 0.6
    assert shape(np.array([-3.0, -1.0, 2.0, 2.0, 2.0])).lower_width == 1.0


# -- the policy --------------------------------------------------------------------------------------------------------


def test_denoiser_is_the_posterior_mean():
    policy, law, t = MixturePolicy(WORLD), WORLD.laws["left"], 400
    alpha, sigma = float(policy.schedule.alpha(torch.tensor(t))), float(policy.schedule.sigma(torch.tensor(t)))
    for x_t in (-1.3, 0.2, 1.1):

        def joint(x, x_t=x_t):
            return law.density(np.array([x]))[0] * norm.pdf(x_t, alpha * x, sigma)

        expected = quad(lambda x: x * joint(x), -8, 8)[0] / quad(joint, -8, 8)[0]
        found = policy.predict(latents(x_t), torch.tensor([t]), policy.encode(["left"]))
        assert found.x0.item() == pytest.approx(expected, abs=1e-5)
        assert alpha * found.x0.item() + sigma * found.eps.item() == pytest.approx(x_t, abs=1e-5)


def test_no_prompt_is_the_even_mixture_of_prompts():
    policy = MixturePolicy(WORLD)
    even = Mixture(np.array([0.65, 0.35]), np.array([-1.0, 1.0]), np.array([0.5, 0.5]))
    other = MixturePolicy(World({"even": even}))
    x_t, t = latents([-0.5, 0.7]), torch.tensor([300, 700])
    found = policy.predict(x_t, t, policy.uncondition(2)).x0
    assert torch.allclose(found, other.predict(x_t, t, other.encode(["even"] * 2)).x0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_step_is_that_of_diffusers(eta):
    policy, scheduler = MixturePolicy(WORLD), DDIMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(20)
    x_t, z, t = latents([-0.4, 0.9]), latents([0.3, -1.2]), torch.tensor([600, 600])
    t = scheduler.timesteps[8].repeat(2)
    prediction = policy.predict(x_t, t, policy.encode(["left", "right"]))
    alpha, sigma = policy.schedule.alpha(t).view(-1, 1, 1, 1), policy.schedule.sigma(t).view(-1, 1, 1, 1)
    velocity = (alpha * prediction.eps - sigma * prediction.x0).float()
    noise = {"eta": eta, "variance_noise": z} if eta else {}
    expected = scheduler.step(velocity, int(t[0]), x_t, **noise).prev_sample
    found = policy.step(x_t, t, policy.previous(t, 20), prediction, eta, z)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_scalar_survives_eight_bit():
    x = np.linspace(-LIMIT, LIMIT, 1001)
    images = MixturePolicy(WORLD).decode(latents(x))
    assert images.dtype == np.uint8
    assert images.shape == (1001, 8, 8, 3)
    assert np.abs(scalars(images) - x).max() < 2e-4
    assert linear_reward(images, ["left"] * 1001).values == pytest.approx(x, abs=2e-4)
    assert MixturePolicy(WORLD).encode_images(images[:3]).flatten().tolist() == pytest.approx(x[:3], abs=2e-4)
    assert scalars(MixturePolicy(WORLD).decode(latents([99.0]))) == pytest.approx([LIMIT])


def test_snapshots_and_reference_are_copies(tmp_path):
    policy = MixturePolicy(WORLD)
    state, reference = policy.trainable_state(), policy.frozen_copy()
    with torch.no_grad():
        for value in policy.denoiser.parameters():
            value.add_(0.1)
    assert not np.allclose(draw(policy, 5)["left"], draw(reference, 5)["left"])
    policy.load_trainable_state(state)
    assert np.allclose(draw(policy, 5)["left"], draw(reference, 5)["left"])
    policy.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "denoiser.safetensors").is_file()


def test_unknown_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompt 'up'; pass one of left, right"):
        MixturePolicy(WORLD).encode(["left", "up"])


def test_the_sampler_draws_the_laws():
    """DDIM is a method of first order: twice the steps, half the distance (seen: .043 and .022)."""
    for prompt, law in WORLD.laws.items():
        coarse, fine = (distance(draw(MixturePolicy(WORLD), steps=n)[prompt], law) for n in (20, 40))
        assert coarse < 0.05
        assert fine < 0.6 * coarse


def test_the_optimal_denoiser_draws_the_optimum():
    """A policy that is exact for the tilted laws: what training could reach at best (seen: .04)."""
    found = measure(draw(MixturePolicy(WORLD.tilt(SLOPE))), WORLD)
    assert found.to_optimum < 0.05
    assert found.slope == pytest.approx(SLOPE, abs=0.05)


def test_the_surrogate_is_the_log_ratio():
    """`−½ ∫ E_ε[e_θ − e_ref] d log SNR = log p*(x)/p(x)` for exact denoisers, which Eq. 11 takes at one (t, ε)."""
    base, tilted = MixturePolicy(WORLD), MixturePolicy(WORLD.tilt(SLOPE))
    law, optimum = WORLD.laws["left"], WORLD.tilt(SLOPE).laws["left"]
    eps = latents(norm.ppf((np.arange(64) + 0.5) / 64))
    t = torch.arange(5, 990, 5)
    log_snr = base.snr(t).log().numpy()
    for x in (-1.0, 0.5, 1.5):
        rows = t.repeat_interleave(64)
        x_t = base.add_noise(torch.full((len(rows), 1, 1, 1), x), eps.repeat(len(t), 1, 1, 1), rows)
        condition = base.encode(["left"] * len(rows))
        errors = [
            losses.mean_squared_error(p.predict(x_t, rows, condition).eps, eps.repeat(len(t), 1, 1, 1)).detach()
            for p in (tilted, base)
        ]
        gain = (errors[1] - errors[0]).view(len(t), 64).mean(1).numpy()
        at = np.array([x])
        expected = np.log(optimum.density(at) / law.density(at))[0]
        assert 0.5 * np.trapezoid(gain[::-1], log_snr[::-1]) == pytest.approx(expected, abs=0.03)


# -- what moves it -----------------------------------------------------------------------------------------------------


def check_shape(draws, share, lower, upper):
    """Halves within tolerances of those of the tilt with the same mean; nearer to it than to laws merely shifted."""
    found = measure(draws, WORLD)
    for prompt, seen in found.shapes.items():
        expected = found.tilt_shapes[prompt]
        assert seen.upper == pytest.approx(expected.upper, abs=share)
        assert seen.lower_width == pytest.approx(expected.lower_width, abs=lower)
        assert seen.upper_width == pytest.approx(expected.upper_width, abs=upper)
    moved = [distance(x, shifted(WORLD.laws[c], x.mean() - WORLD.laws[c].mean)) for c, x in draws.items()]
    assert found.to_tilt < np.mean(moved)
    own = [World({c: WORLD.laws[c]}).tilt_to(x.mean()) for c, x in draws.items()]
    assert own[0] == pytest.approx(own[1], rel=0.2)  # p* tilts all prompts by the same κ
    return found


def drawn_at(train, *updates):
    """Samples after some numbers of updates of one run, the last of which ends it."""
    found = {}

    def watch(update, policy):
        if update in updates:
            found[update] = draw(policy)

    train(WORLD, updates=updates[-1], watch=watch)
    return [found[update] for update in updates]


def test_sharpening_converges_to_the_optimum():
    """Seen over three seeds: reward .80–.83 (p*: .78), distance to p* .09–.11 (base: 1.08), to the matched tilt .10–.12
    (shifted laws: .42), shares off by up to .04, widths by up to .08 and .04.
    """
    found = check_shape(draw(sharpened(WORLD)), share=0.08, lower=0.13, upper=0.1)
    assert found.reward == pytest.approx(WORLD.tilt(SLOPE).mean, abs=0.15)
    assert found.to_optimum < 0.18
    assert found.to_tilt < 0.18


def test_sharpening_trades_reward_for_beta():
    """κ is as 1/β: half the tilt at twice the pull (seen: .55 and 1.02), as the exponent `r/β` of p* says."""
    found = measure(draw(sharpened(WORLD, options=replace(SHARPENING, beta=2 * SHARPENING.beta))), WORLD)
    assert found.slope == pytest.approx(SLOPE / 2, abs=0.12)
    assert found.to_tilt < 0.15


def test_ddpo_passes_the_optimum():
    """It has no pull to the reference: on its way its laws resemble tilts, and it goes on.

    Seen: reward .72, distances .24 to p* and .23 to the matched tilt (shifted laws: .25), shares off by up to .07,
    widths by up to .18 and .15; twenty updates later .69 to p*.
    """
    near, beyond = drawn_at(ddpo, 50, 70)
    found = check_shape(near, share=0.12, lower=0.23, upper=0.2)
    assert found.reward > WORLD.mean + 0.8
    assert found.to_optimum < 0.36
    assert found.to_tilt < 0.3
    assert measure(beyond, WORLD).to_optimum > found.to_optimum + 0.15
    assert measure(beyond, WORLD).reward > WORLD.tilt(SLOPE).mean + 0.3


def test_sft_sharpening_learns_to_remove_the_noise_it_liked():
    """x_0 is given and only ε is chosen, so the law of x_0 has no reason to move, and its denoiser expects luck.

    With one branch, nothing chosen, it stays where it is.
    """
    nothing_chosen = SFTOptions(rollout_steps=SFT.rollout_steps, branches=1)
    plain, chosen = (measure(draw(sft(WORLD, updates=60, options=options)), WORLD) for options in (nothing_chosen, SFT))
    assert plain.reward == pytest.approx(WORLD.mean, abs=0.15)
    assert chosen.reward < plain.reward - 0.5


def test_particles_come_nearer_to_the_optimum_with_their_number():
    found = {n: measure(particles(WORLD, n), WORLD) for n in (1, 4, 64)}
    assert found[1].to_optimum > 0.9
    assert found[4].to_optimum < 0.6 * found[1].to_optimum
    assert found[64].to_optimum < 0.6 * found[4].to_optimum
    assert found[64].to_tilt < 0.15
    for prompt, seen in found[64].shapes.items():
        assert seen.upper == pytest.approx(found[64].tilt_shapes[prompt].upper, abs=0.06)
        assert seen.lower_width == pytest.approx(found[64].tilt_shapes[prompt].lower_width, abs=0.1)


def test_path_integral_winners_come_nearer_to_the_optimum_with_their_number():
    """The winner of n samples, drawn from `softmax(r / λ)`, follows p* of κ = 1/λ as n grows (seen: .69, .21, .05)."""
    found = []
    for count in (2, 8, 64):
        rng = generator(0, "winner", count)
        near = []
        for law in WORLD.laws.values():
            rewards = torch.from_numpy(law.draw(4000 * count, rng)).view(4000, count)
            gumbel = torch.from_numpy(rng.gumbel(size=(4000, 2, count)))
            winner, _ = select(rewards, 1 / SLOPE, gumbel)
            near.append(distance(rewards.gather(1, winner[:, None]).numpy().ravel(), law.tilt(SLOPE)))
        found.append(np.mean(near))
    assert found[0] > 2 * found[1] > 4 * found[2]
    assert found[2] < 0.08


def test_best_of_n_has_its_closed_form():
    """The best of 8 has the distribution function F⁸, F being the sampler's; it overshoots p* (seen: .02 off)."""
    draws, sampled = best_of(WORLD, 8, runs=1000), draw(MixturePolicy(WORLD), 4000)
    u = (np.arange(4000) + 0.5) / 4000
    for prompt in WORLD.prompts:
        assert wasserstein_distance(draws[prompt], np.interp(u ** (1 / 8), u, sampled[prompt])) < 0.08
    assert measure(draws, WORLD).reward > WORLD.tilt(SLOPE).mean + 0.2


def test_averaged_noise_gains_reward_and_loses_width():
    """Free²Guide's path-integral form replaces a step's noise by a mean of noises, so its laws come out too narrow."""
    found = measure(guided(WORLD, runs=100), WORLD)
    assert found.reward > WORLD.mean + 0.6
    assert found.to_optimum < 0.7
    for prompt, seen in found.shapes.items():
        assert seen.upper_width < 0.75 * found.tilt_shapes[prompt].upper_width
