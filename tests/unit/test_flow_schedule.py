"""A flow's levels, grids and steps against diffusers' scheduler, and the derivations of docs/flow-matching.md."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from sharpening.flow_schedule import CLEAN, RESOLUTION, FlowSchedule
from sharpening.losses import min_snr_weights
from sharpening.policies.base import Condition
from sharpening.policies.scheduled import ScheduledPolicy
from sharpening.schedule import ddim_moments, ddim_step, eps_and_x0
from sharpening.search.sigma import MOST_NOISE, karras_sigmas, karras_timesteps, sigma_of

TOKENS = 1024
MU = 0.5 + (1024 - 256) / (4096 - 256) * (1.15 - 0.5)  # FLUX's at 512 × 512 pixels
CONFIGS = {
    "plain": {},
    "shifted": {"shift": 3.0},
    "dynamic": {"use_dynamic_shifting": True, "shift": 3.0},
    "dynamic, linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "stretched": {"shift": 2.0, "shift_terminal": 0.1},
    "karras": {"shift": 3.0, "use_karras_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


def make(even_grid=False, **config):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    return scheduler, FlowSchedule(scheduler.config, TOKENS, even_grid)


def set_grid(scheduler, steps, even_grid):
    mu = MU if scheduler.config.use_dynamic_shifting else None
    sigmas = torch.linspace(1, 1 / steps, steps).tolist() if even_grid else None
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
    return scheduler


@pytest.mark.parametrize("even_grid", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_grid_is_the_schedulers_grid(config, even_grid):
    scheduler, schedule = make(even_grid, **CONFIGS[config])
    for steps in (2, 7, 28, 50):
        set_grid(scheduler, steps, even_grid)
        grid = schedule.timesteps(steps)
        assert grid.dtype == torch.long
        torch.testing.assert_close(schedule.sigma(grid).float(), scheduler.sigmas[:-1], atol=2e-7, rtol=0)
        torch.testing.assert_close(schedule.model_time(grid), scheduler.timesteps, atol=2e-4, rtol=0)
        assert schedule.previous(grid, steps).tolist() == [*grid.tolist()[1:], CLEAN]
    mixed = schedule.previous(grid[[3, 49, 0]], 50)  # rows at different timesteps
    assert mixed.tolist() == [int(grid[4]), CLEAN, int(grid[1])]


def test_levels_by_hand():
    _, schedule = make(shift=3.0)
    half = RESOLUTION // 2 - 1  # u = 1/2, so σ = 3/2 / (1 + 2/2)
    t = torch.tensor([RESOLUTION - 1, half, CLEAN, -7])
    torch.testing.assert_close(schedule.sigma(t), torch.tensor([1, 0.75, 0, 0]).double())
    torch.testing.assert_close(schedule.alpha(t), torch.tensor([0, 0.25, 1, 1]).double())
    assert schedule.model_time(t).tolist() == [1000, 750, 0, 0]
    assert len(schedule) == RESOLUTION
    assert make(use_dynamic_shifting=True)[1].shift == pytest.approx(math.exp(0.63))
    assert make(use_dynamic_shifting=True, time_shift_type="linear")[1].shift == pytest.approx(0.63)


def test_readings_of_a_velocity_by_hand():
    # x_0 = 2, ε = −1 and σ = 1/4 give x_t = 1.25 and v = ε − x_0 = −3.
    levels = torch.tensor(0.75), torch.tensor(0.25)
    found = eps_and_x0(torch.tensor(-3.0), torch.tensor(1.25), *levels, "flow_prediction")
    assert [x.item() for x in found] == [-1.0, 2.0]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_deterministic_step_is_eulers(config):
    scheduler, schedule = make(**CONFIGS[config])
    set_grid(scheduler, 12, even_grid=False)
    generator = torch.Generator().manual_seed(0)
    x = ours = torch.randn(1, 4, 4, 4, generator=generator)
    for theirs_t, t in zip(scheduler.timesteps, schedule.timesteps(12), strict=True):
        v = torch.randn(x.shape, generator=generator)
        x = scheduler.step(v, theirs_t, x).prev_sample
        here, there = ((schedule.alpha(s).float(), schedule.sigma(s).float()) for s in (t, schedule.previous(t, 12)))
        eps, x0 = eps_and_x0(v, ours, *here, "flow_prediction")
        ours = ddim_step(x0, eps, *here, *there, variance_preserving=False)
        torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def levels(*sigmas):
    return torch.tensor([[1 - sigma, sigma] for sigma in sigmas], dtype=torch.float64).flatten().unbind()


@pytest.mark.parametrize(("sigma", "sigma_prev"), [(1.0, 0.9), (0.8, 0.5), (0.3, 0.02)])
def test_a_full_stochastic_step_is_the_posterior(sigma, sigma_prev):
    """Bayes' rule for N(α_s x_0, σ_s²) and x_t ~ N((α_t/α_s) x_s, σ_t² − (α_t/α_s)² σ_s²)."""
    alpha_t, sigma_t, alpha_s, sigma_s = levels(sigma, sigma_prev)
    x0, eps = torch.tensor([0.7, -1.3], dtype=torch.float64).unbind()
    x_t, share = alpha_t * x0 + sigma_t * eps, alpha_t / alpha_s
    added = sigma_t**2 - share**2 * sigma_s**2
    precision = 1 / sigma_s**2 + share**2 / added
    expected = (alpha_s * x0 / sigma_s**2 + share * x_t / added) / precision
    mean, deviation = ddim_moments(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s, 1.0, variance_preserving=False)
    assert deviation.item() == pytest.approx(precision.item() ** -0.5)
    assert mean.item() == pytest.approx(expected.item())
    for eta in (0.3, 1.0):  # at any η, ε's and the new noise's variances add up to σ_s²
        at_rest, deviation = ddim_moments(0 * x0, eps / eps, alpha_t, sigma_t, alpha_s, sigma_s, eta, False)
        assert at_rest.item() ** 2 + deviation.item() ** 2 == pytest.approx(sigma_s.item() ** 2)


@pytest.mark.parametrize("sigma", [0.9, 0.5, 0.1])
def test_the_surrogates_weights(sigma):
    """KL of two predictions' posterior steps = ½ (SNR_s − SNR_t) ‖Δx̂_0‖², and what that is in ε and v."""
    sigma_prev = sigma - 1e-3
    alpha_t, sigma_t, alpha_s, sigma_s = levels(sigma, sigma_prev)
    x_t, *velocities = torch.tensor([0.4, 0.3, 0.8], dtype=torch.float64).unbind()
    readings = [eps_and_x0(v, x_t, alpha_t, sigma_t, "flow_prediction") for v in velocities]
    moments = [ddim_moments(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s, 1.0, False) for eps, x0 in readings]
    kl = ((moments[0][0] - moments[1][0]) ** 2 / (2 * moments[0][1] ** 2)).item()
    (eps_1, x0_1), (eps_2, x0_2) = readings
    snr_t, snr_s = (((1 - s) / s) ** 2 for s in (sigma, sigma_prev))
    assert kl == pytest.approx(0.5 * (snr_s - snr_t) * (x0_1 - x0_2).item() ** 2)
    of_eps, of_v = (eps_1 - eps_2).item() ** 2, 0.5**2
    assert of_eps == pytest.approx((1 - sigma) ** 2 * of_v)
    # For a small step, per unit of σ: ‖Δε‖² / (σ (1 − σ)) = ‖Δv‖² (1 − σ) / σ.
    assert kl / 1e-3 == pytest.approx(of_eps / (sigma * (1 - sigma)), rel=2e-2)
    assert kl / 1e-3 == pytest.approx(of_v * (1 - sigma) / sigma, rel=2e-2)
    weight = min_snr_weights(torch.tensor(snr_t), 1.0).item() * (1 - sigma) ** 2  # of the velocity's error
    assert weight == pytest.approx(min((1 - sigma) ** 2, sigma**2))


def test_weights_of_pure_noise_and_of_a_clean_latent_are_finite():
    assert min_snr_weights(torch.tensor([0.0, 0.5, 4.0, torch.inf]), 2.0).tolist() == [1.0, 1.0, 0.5, 0.0]


def test_schedules_that_ask_for_another_sampler_are_refused():
    with pytest.raises(ValueError, match="DDIMScheduler"):
        FlowSchedule(DDIMScheduler().config | {"_class_name": "DDIMScheduler"}, TOKENS)
    with pytest.raises(ValueError, match="stochastic_sampling"):
        make(stochastic_sampling=True)
    with pytest.raises(ValueError, match="1 to 1000"):
        make()[1].timesteps(0)


class Still(ScheduledPolicy):
    """A policy whose denoiser predicts no velocity; its schedule is all that is asked."""

    def __init__(self, schedule):
        self.schedule, self.device, self.denoiser = schedule, torch.device("cpu"), nn.Linear(1, 1)

    def denoise(self, x_t, time, condition, guidance_scale):
        return torch.zeros_like(x_t)

    def uncondition(self, batch):
        return Condition(torch.zeros(batch, 1, 1))


def test_karras_grids_begin_at_pure_noise_and_go_on_from_a_finite_level():
    policy = Still(make(shift=3.0)[1])
    first, last = RESOLUTION - 1, RESOLUTION // 100
    times = karras_timesteps(policy, first, last, 6, 7.0)
    assert (times[0], times[-1], len(times)) == (first, last, 6)
    assert times == sorted(times, reverse=True)
    found = sigma_of(policy, torch.tensor(times))
    assert found[0] == torch.inf
    wanted = karras_sigmas(MOST_NOISE, float(found[-1]), 5, 7.0)
    torch.testing.assert_close(found[1:], wanted, rtol=1e-4, atol=0)
    assert karras_timesteps(policy, first, last, 1, 7.0) == [first]
    assert len(karras_timesteps(policy, times[2], last, 3, 7.0)) == 3
