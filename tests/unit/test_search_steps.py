"""The searches' runs against plain loops over the policy, one latent at a time."""

import math

import numpy as np
import pytest
import torch

from sharpening.policies.base import Prediction
from sharpening.search import load_search
from sharpening.search.base import SearchOptions, SearchSeeds
from sharpening.search.demon import exact_step, heun_step
from sharpening.search.session import CLEAN, Session
from sharpening.search.sigma import karras_timesteps
from sharpening.seeds import generator, noise

PROMPT = "a red circle"
RUN, INDEX = 11, 5


class Loop:
    """A sampler of four steps that knows single latents only."""

    def __init__(self, policy, brightness):
        self.policy, self.brightness = policy, brightness
        self.condition = policy.encode([PROMPT])
        self.times = [*policy.timesteps(4).tolist(), CLEAN]

    def draw(self, *counters):
        return noise(self.policy.latent_shape, RUN, "search", INDEX, *counters)[None]

    @torch.no_grad()
    def predict(self, x, t):
        return self.policy.predict(x, torch.tensor([t]), self.condition)

    def step(self, x, t, t_next, z=None):
        prediction = self.predict(x, t)
        t, t_next = torch.tensor([t]), torch.tensor([t_next])
        return self.policy.step(x, t, t_next, prediction, 0.0 if z is None else 1.0, z)

    def reward(self, x0):
        return float(self.brightness(self.policy.decode(x0), [PROMPT]).values[0])

    def walk(self, x, times):
        for t, t_next in zip(times, times[1:], strict=False):
            x = self.step(x, t, t_next)
        return x


@pytest.fixture
def loop(policy, brightness):
    return Loop(policy, brightness)


def assert_finds(loop, x0, budget, name, **options):
    """The search returns the image of x0, and its budget is spent to the last evaluation."""
    result = load_search(name, steps=4, **options).search(
        loop.policy, loop.brightness, [PROMPT], budget, SearchSeeds(RUN, (INDEX,))
    )
    np.testing.assert_allclose(result.images[0].astype(int), loop.policy.decode(x0)[0].astype(int), atol=1)
    assert result.nfe == budget


def best(loop, x0s):
    return int(np.argmax([loop.reward(x0) for x0 in x0s]))


def test_zero_order_is_a_climb_over_noises(loop):
    pivot = loop.draw("latent", 0)
    found = [loop.walk(pivot, loop.times)]
    for round_ in range(2):
        noises = []
        for k in range(3):
            w = loop.draw("neighbour", round_, k)
            v = w - (w * pivot).sum() / pivot.square().sum() * pivot
            noises.append(0.6 * pivot + 0.8 * pivot.norm() * v / v.norm())
        images = [loop.walk(x, loop.times) for x in noises]
        found += images
        pivot = noises[best(loop, images)]
    assert_finds(loop, found[best(loop, found)], 7 * 4, "zero_order", neighbours=3, similarity=0.6, keep_pivot=False)


def test_paths_are_noised_again_and_thinned_out(loop):
    alpha = {t: math.sqrt(loop.policy.schedule.alphas_cumprod[t]) for t in loop.times[:-1]}
    kept, times = [loop.walk(loop.draw("latent", k), loop.times[:3]) for k in range(2)], loop.times
    for round_, (high, low) in enumerate([(1, 3), (2, 4)]):
        place = high + 1
        share = alpha[times[high]] / alpha[times[place]]
        deviation = math.sqrt(1 - alpha[times[high]] ** 2 - share**2 * (1 - alpha[times[place]] ** 2))
        copies = [
            loop.walk(share * kept[k // 2] + deviation * loop.draw("renoise", 0, round_, k), times[high : low + 1])
            for k in range(4)
        ]
        clean = copies if low == 4 else [loop.predict(x, times[low]).x0 for x in copies]
        order = np.argsort([-loop.reward(x0) for x0 in clean])
        kept = [copies[k] for k in order[:2]]
    options = {"paths": 2, "expansions": 2, "first_steps": 2, "forward_steps": 1, "backward_steps": 2}
    assert_finds(loop, kept[0], 4 + (8 + 4) + 8, "paths", **options)


def test_demon_steps_with_the_mixed_noise(loop):
    schedule, times = (
        loop.policy.schedule,
        [*karras_timesteps(loop.policy, loop.times[0], loop.times[3], 4, 7.0), CLEAN],
    )
    sigma = [float(schedule.sigma(torch.tensor(t)) / schedule.alpha(torch.tensor(t))) for t in times]
    x = loop.draw("latent", 0)
    for i in range(4):
        prediction = loop.predict(x, times[i])

        def step(z, beta, i=i, prediction=prediction):
            keep = math.exp(-beta * (sigma[i] - sigma[i + 1]))
            mixed = prediction.x0 + sigma[i + 1] * (keep * prediction.eps + math.sqrt(1 - keep**2) * z)
            return mixed * float(schedule.alpha(torch.tensor(times[i + 1])))

        if sigma[i + 1] < 0.11:
            x = step(torch.zeros_like(x), 0.0)
            continue
        z = [loop.draw("step", 0, i, k) for k in range(3)]
        r = np.array([loop.reward(loop.walk(step(z[k], 0.2), [times[i + 1], CLEAN])) for k in range(3)])
        w = np.tanh((r - r.mean()) / r.std(ddof=1))
        total = sum(float(w[k]) * z[k] for k in range(3))
        x = step(math.sqrt(512) * total / total.norm(), 0.2)
    guided = sum(level >= 0.11 for level in sigma[1:])
    assert guided >= 2
    assert_finds(loop, x, 4 + 3 * guided, "demon", candidates=3, estimate_steps=1, beta=0.2)


@pytest.mark.parametrize("form", ["argmax", "path_integral"])
def test_free2guide_steps_with_the_chosen_noise(loop, form):
    times = loop.times
    starts = [loop.draw("latent", k) for k in range(3)]
    x = starts[best(loop, [loop.predict(x, times[0]).x0 for x in starts])]
    x = loop.step(x, times[0], times[1], loop.draw("step", 0, 0, 0))
    for i in (1, 2):
        z = [loop.draw("step", 0, i, k) for k in range(3)]
        tried = [loop.step(x, times[i], times[i + 1], z[k]) for k in range(3)]
        rewards = [loop.reward(loop.predict(y, times[i + 1]).x0) for y in tried]
        if form == "argmax":
            x = tried[int(np.argmax(rewards))]
        else:
            w = np.exp(np.array(rewards) / 0.7 - max(rewards) / 0.7)
            average = sum(float(w[k] / w.sum()) * z[k] for k in range(3))
            x = loop.step(x, times[i], times[i + 1], average)
    x = loop.step(x, times[3], CLEAN)
    budget = 3 + 1 + 2 * (3 + (form == "path_integral"))
    assert_finds(loop, x, budget, "free2guide", candidates=3, guided_steps=2, form=form, temperature=0.7)


def test_fk_steering_copies_the_better_particles(loop):
    times, x = loop.times, [loop.draw("latent", k) for k in range(4)]
    before = np.zeros(4)
    copied = False
    for i in range(4):
        if i in (1, 2):
            r = np.array([loop.reward(loop.predict(y, times[i]).x0) for y in x])
            w = np.exp(2.0 * (r - before) - np.max(2.0 * (r - before)))
            w = w / w.sum()
            u = generator(RUN, "search", INDEX, "resample", 0, i).random(4)
            places = [int(np.sum(np.cumsum(w) <= value)) for value in u]
            copied |= len(set(places)) < 4
            x, before = [x[k] for k in places], r[places]
        z = [loop.draw("step", 0, i, k) if i < 3 else None for k in range(4)]
        x = [loop.step(x[k], times[i], times[i + 1], z[k]) for k in range(4)]
    assert copied
    assert_finds(
        loop, x[best(loop, x)], 16, "fk_steering", particles=4, reward_scale=2.0, resample_to=2, adaptive=False
    )


# -- the steps of Demon's sampler ------------------------------------------------------------------------------------


@pytest.fixture
def session(policy, brightness):
    return Session(policy, brightness, [PROMPT], 100, SearchSeeds(RUN, (INDEX,)), SearchOptions(steps=4))


def levels(policy, *times):
    t = torch.tensor(times)
    return (policy.schedule.sigma(t) / policy.schedule.alpha(t)).tolist(), policy.schedule.alpha(t).tolist()


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_exact_step_has_the_moments_of_the_sde(session, beta):
    times = (800, 500)
    (sigma, sigma_next), (_, alpha_next) = levels(session.policy, *times)
    ones, zeros = torch.ones(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)
    mean = float(exact_step(session, ones, times, Prediction(ones, zeros), beta, zeros).mean())
    deviation = float(exact_step(session, ones, times, Prediction(zeros, zeros), beta, ones).mean())
    # Around x̂_0 = 0, dm/dσ = (1 + βσ) m/σ and dv/dσ = 2 (1 + βσ) v/σ − 2βσ², from m = σ, v = 0 down to σ'.
    m, v, parts = sigma, 0.0, 200_000
    for level in np.linspace(sigma, sigma_next, parts + 1)[:-1]:
        h = (sigma_next - sigma) / parts
        m, v = (
            m + h * (1 + beta * level) * m / level,
            v + h * (2 * (1 + beta * level) * v / level - 2 * beta * level**2),
        )
    assert mean == pytest.approx(alpha_next * m, rel=1e-3)
    assert deviation == pytest.approx(alpha_next * math.sqrt(v), rel=1e-3)


def test_without_noise_the_exact_step_is_ddim(session):
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = session.predict(x, 800)
        found = exact_step(session, x, (800, 500), prediction, 1e-12, torch.ones_like(x))
    torch.testing.assert_close(found, session.step(x, 800, 500, prediction), atol=1e-4, rtol=0)


def test_a_heun_step_by_hand(session):
    (sigma, sigma_next), (alpha, alpha_next) = levels(session.policy, 800, 500)
    draw = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 1, 8, 8, 8, generator=draw).unbind(0)
    with torch.no_grad():
        first = session.predict(x, 800)
        found = heun_step(session, x, (800, 500), first, 0.1, z)
        noise_1, noise_2 = (math.sqrt(0.2) * s * math.sqrt(sigma - sigma_next) * z for s in (sigma, sigma_next))
        slope_1 = (1 + 0.1 * sigma) * first.eps
        euler = x / alpha + (sigma_next - sigma) * slope_1 + noise_1
        slope_2 = (1 + 0.1 * sigma_next) * session.predict(alpha_next * euler, 500).eps
    expected = x / alpha + (sigma_next - sigma) * (slope_1 + slope_2) / 2 + (noise_1 + noise_2) / 2
    torch.testing.assert_close(found, alpha_next * expected, atol=1e-4, rtol=1e-4)


def test_heuns_ode_is_nearer_to_the_solution_than_eulers(session):
    x = session.noise(1, "latent")
    with torch.no_grad():
        solution = session.walk(x, list(range(900, 299, -20)))
        euler = session.walk(x, [900, 600, 300])
        heun = x
        for times in ((900, 600), (600, 300)):
            heun = heun_step(session, heun, times, session.predict(heun, times[0]), 0.0, torch.zeros_like(x))
    assert (heun - solution).norm() < 0.5 * (euler - solution).norm()
