"""Losses against cases worked by hand and against finite differences."""

import math

import pytest
import torch

from sharpening import losses

RATIO_W = torch.tensor([0.010, -0.004, 0.003], dtype=torch.float64)
RATIO_L = torch.tensor([0.002, 0.001, 0.003], dtype=torch.float64)
REWARD_W = torch.tensor([90.0, 85.0, 92.0], dtype=torch.float64)
REWARD_L = torch.tensor([88.0, 84.5, 80.0], dtype=torch.float64)
BETA, SCALE = 200.0, 0.4


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


def test_errors_are_means_over_elements():
    eps = torch.zeros(2, 3, 1, 2, 2)
    target = torch.stack([torch.full((3, 1, 2, 2), 2.0), torch.arange(12.0).view(3, 1, 2, 2)])
    error = losses.mean_squared_error(eps, target)
    assert error.tolist() == [[4.0, 4.0, 4.0], [3.5, 31.5, 91.5]]  # (0+1+4+9)/4, (16+25+36+49)/4, ...


def test_log_ratio_by_hand():
    error = torch.tensor([[0.10, 0.30, 9.0], [0.5, 0.5, 0.5]])
    reference_error = torch.tensor([[0.20, 0.24, 1.0], [0.5, 0.7, 0.9]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ratio = losses.log_ratio(error, reference_error, mask)
    torch.testing.assert_close(ratio, torch.tensor([0.02, 0.2]))  # (0.10 − 0.06)/2, (0 + 0.2 + 0.4)/3


def test_log_ratio_ignores_states_that_do_not_exist():
    mask = torch.tensor([[True, False]])
    ratio = losses.log_ratio(torch.tensor([[0.1, torch.nan]]), torch.tensor([[0.3, torch.nan]]), mask)
    torch.testing.assert_close(ratio, torch.tensor([0.2]))


def test_eq_9_by_hand():
    error = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    omega = torch.tensor([[0.5, 2.0]])
    assert losses.sft(error, torch.tensor([[0.0, 1.0, 0.0]]), omega).tolist() == [9.5]  # 0.5·3 + 2·4
    assert losses.sft(error, torch.tensor([[0.5, 0.25, 0.25]]), omega).tolist() == [8.25]  # (4.5·2 + 9.5 + 14.5)/4


def test_eq_11_by_hand():
    # β Δ = 1.6, −1, 0; η gap = 0.8, 0.2, 4.8
    expected = [-log_sigmoid(0.8), -log_sigmoid(-1.2), -log_sigmoid(-4.8)]
    value = losses.dpo_margin(RATIO_W, RATIO_L, REWARD_W, REWARD_L, BETA, SCALE)
    assert value.tolist() == pytest.approx(expected, rel=1e-12)


def test_dpo_is_eq_11_without_margin():
    expected = [-log_sigmoid(1.6), -log_sigmoid(-1.0), math.log(2)]
    assert losses.dpo(RATIO_W, RATIO_L, BETA).tolist() == pytest.approx(expected, rel=1e-12)
    margin = losses.dpo_margin(RATIO_W, RATIO_L, REWARD_W, REWARD_L, BETA, 0.0)
    assert margin.tolist() == pytest.approx(expected, rel=1e-12)


def test_rebel_by_hand():
    value = losses.rebel(RATIO_W, RATIO_L, REWARD_W, REWARD_L, BETA, SCALE)
    assert value.tolist() == pytest.approx([0.8**2, 1.2**2, 4.8**2], rel=1e-12)


LOSSES = {
    "dpo_margin": lambda x, y: losses.dpo_margin(x, y, REWARD_W, REWARD_L, BETA, SCALE),
    "dpo": lambda x, y: losses.dpo(x, y, BETA),
    "rebel": lambda x, y: losses.rebel(x, y, REWARD_W, REWARD_L, BETA, SCALE),
}


@pytest.mark.parametrize("name", LOSSES)
def test_preference_gradients_against_finite_differences(name):
    inputs = tuple(ratio.clone().requires_grad_() for ratio in (RATIO_W, RATIO_L))
    assert torch.autograd.gradcheck(LOSSES[name], inputs, eps=1e-7)
    LOSSES[name](*inputs).sum().backward()
    for position, ratio in enumerate((RATIO_W, RATIO_L)):
        for group in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[group] = 1e-6
            moved = [[r.detach().clone() for r in inputs] for _ in range(2)]
            moved[0][position], moved[1][position] = ratio + step, ratio - step
            difference = (LOSSES[name](*moved[0]).sum() - LOSSES[name](*moved[1]).sum()) / 2e-6
            assert inputs[position].grad[group].item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-6)


def test_error_path_gradients_against_finite_differences():
    """From the noise prediction through the errors and the log ratio into Eq. 11."""
    generator = torch.Generator().manual_seed(0)
    eps, target = torch.randn(2, 3, 2, 2, 2, 2, 2, generator=generator, dtype=torch.float64)
    reference_error = torch.rand(3, 2, 2, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False], [True, True]])

    def eq_11(prediction):
        error = losses.mean_squared_error(prediction, target)
        winner, loser = losses.log_ratio(error, reference_error, mask[:, None]).unbind(1)
        return losses.dpo_margin(winner, loser, REWARD_W, REWARD_L, 2.0, SCALE)

    assert torch.autograd.gradcheck(eq_11, (eps.requires_grad_(),))
    eq_11(eps).sum().backward()
    assert (eps.grad[1, :, 1] == 0).all()  # a state that does not exist
    assert (eps.grad[1, :, 0] != 0).any()


def test_eq_9_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(0)
    error = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.softmax(torch.rand(2, 3, generator=generator, dtype=torch.float64), -1)
    omega = torch.rand(2, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda e: losses.sft(e, weights, omega), (error,))


def gradient(loss, gap):
    """Gradient with respect to the winner's log ratio at one gap."""
    winner = torch.tensor([0.002], dtype=torch.float64, requires_grad=True)
    loss(winner, torch.zeros(1, dtype=torch.float64), torch.tensor([gap], dtype=torch.float64)).sum().backward()
    return winner.grad.item()


def test_eq_11_gradient_depends_on_the_reward_gap():
    def ours(winner, loser, gap):
        return losses.dpo_margin(winner, loser, gap, torch.zeros_like(gap), BETA, SCALE)

    def public_code(winner, loser, gap):
        """The gap added outside the log-sigmoid, detached."""
        return losses.dpo(winner, loser, BETA) - gap.detach()

    # d/dw −log σ(βw − ηg) = −β σ(ηg − βw)
    for gap in (0.0, 1.0, 5.0):
        expected = -BETA / (1 + math.exp(BETA * 0.002 - SCALE * gap))
        assert gradient(ours, gap) == pytest.approx(expected, rel=1e-9)
    assert gradient(ours, 5.0) < gradient(ours, 1.0) < gradient(ours, 0.0)
    assert gradient(public_code, 5.0) == gradient(public_code, 0.0) == gradient(ours, 0.0)


def test_losses_stay_finite_far_out():
    far = torch.tensor([50.0], dtype=torch.float32)
    assert losses.dpo(-far, far, 2500.0).item() == pytest.approx(250_000.0)
    assert losses.dpo(far, -far, 2500.0).item() == 0.0


def test_min_snr_weights_cap_what_nearly_clean_states_weigh():
    snr = torch.tensor([0.01, 1.0, 4.0, 100.0])
    torch.testing.assert_close(losses.min_snr_weights(snr, 2.0), torch.tensor([1.0, 1.0, 0.5, 0.02]))
    assert losses.min_snr_weights(snr, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]
