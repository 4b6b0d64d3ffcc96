"""Noise levels, grids and steps, with diffusers' DDIMScheduler as the oracle."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from sharpening.schedule import Schedule, ddim_step, eps_and_x0

BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def make(**changes):
    scheduler = DDIMScheduler(**BASE | changes)
    return scheduler, Schedule.from_config(scheduler.config)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps_offset", [0, 1])
def test_grid_is_diffusers_grid(spacing, steps_offset):
    scheduler, schedule = make(timestep_spacing=spacing, steps_offset=steps_offset)
    for steps in (1, 2, 7, 20, 25, 50, 999):
        scheduler.set_timesteps(steps)
        assert torch.equal(schedule.timesteps(steps), scheduler.timesteps)


def test_grid_refuses_more_steps_than_timesteps():
    with pytest.raises(ValueError, match="1 to 1000"):
        make()[1].timesteps(1001)


def test_levels_by_hand():
    schedule = Schedule(torch.tensor([0.81, 0.36], dtype=torch.float64), final_alpha_cumprod=1.0)
    t = torch.tensor([0, 1, -1, -50])
    torch.testing.assert_close(schedule.alpha(t), torch.tensor([0.9, 0.6, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        schedule.sigma(t), torch.tensor([0.19**0.5, 0.8, 0.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_both_readings_by_hand():
    x_t, output = torch.tensor([2.0]), torch.tensor([0.5])
    alpha_t, sigma_t = torch.tensor([0.6]), torch.tensor([0.8])
    eps, x0 = eps_and_x0(output, x_t, alpha_t, sigma_t, "epsilon")
    assert (eps.item(), x0.item()) == pytest.approx((0.5, 8 / 3))  # (2 − 0.8·0.5) / 0.6
    eps, x0 = eps_and_x0(output, x_t, alpha_t, sigma_t, "v_prediction")
    assert (eps.item(), x0.item()) == pytest.approx((1.9, 0.8))  # 0.6·0.5 + 0.8·2, 0.6·2 − 0.8·0.5
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        eps, x0 = eps_and_x0(output, x_t, alpha_t, sigma_t, prediction_type)
        assert (alpha_t * x0 + sigma_t * eps).item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="flow"):
        eps_and_x0(output, x_t, alpha_t, sigma_t, "flow")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("set_alpha_to_one", "clip_sample", "spacing"),
    [(True, False, "leading"), (False, True, "leading"), (False, False, "trailing"), (True, False, "linspace")],
)
def test_step_is_diffusers_step_at_every_timestep(prediction_type, set_alpha_to_one, clip_sample, spacing):
    scheduler, schedule = make(
        prediction_type=prediction_type,
        set_alpha_to_one=set_alpha_to_one,
        clip_sample=clip_sample,
        timestep_spacing=spacing,
    )
    steps = 50
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x_t, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator)
    for t, eta in itertools.product(scheduler.timesteps, (0.0, 1.0)):
        expected = scheduler.step(output, t, x_t, eta=eta, variance_noise=noise)
        alpha_t, sigma_t = schedule.alpha(t).float(), schedule.sigma(t).float()
        previous = schedule.previous(t, steps)
        eps, x0 = eps_and_x0(output, x_t, alpha_t, sigma_t, prediction_type)
        if schedule.clip_range is not None:
            x0 = x0.clamp(-schedule.clip_range, schedule.clip_range)
        torch.testing.assert_close(x0, expected.pred_original_sample, rtol=1e-4, atol=1e-5)
        levels = (alpha_t, sigma_t, schedule.alpha(previous).float(), schedule.sigma(previous).float())
        x_prev = ddim_step(x0, eps, *levels, eta=eta, noise=noise)
        torch.testing.assert_close(x_prev, expected.prev_sample, rtol=1e-4, atol=1e-4)


def test_step_with_eta_needs_noise():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="noise"):
        ddim_step(one, one, one, one, one, one, eta=0.5)


def test_configuration_of_another_scheduler_is_read_as_ddim():
    config = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    schedule = Schedule.from_config(config.config)
    assert schedule.timesteps(50)[-1] == DDIMScheduler.from_config(config.config).config.steps_offset
    torch.testing.assert_close(schedule.alphas_cumprod, config.alphas_cumprod.double())


def test_thresholding_is_refused():
    with pytest.raises(ValueError, match="thresholding"):
        make(thresholding=True)
