"""Path rewards, weights and selection."""

import numpy as np
import pytest
import torch

from sharpening.path_integral import branch_weights, path_rewards, select


def test_path_reward_by_hand():
    rewards = torch.tensor([[[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], [[5.0, 7.0, torch.nan], [1.0, 2.0, -torch.inf]]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert path_rewards(rewards, mask).tolist() == [[3.0, 4.0], [6.0, 1.5]]


def test_weights_by_hand():
    path_reward = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float64)
    torch.testing.assert_close(branch_weights(path_reward, 1.0), torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    torch.testing.assert_close(branch_weights(path_reward, 0.5), torch.tensor([[0.1, 0.9]], dtype=torch.float64))


def test_small_temperature_is_argmax():
    generator = torch.Generator().manual_seed(0)
    path_reward = 90 + 3 * torch.randn(500, 4, generator=generator)
    gumbel = -torch.log(-torch.log(torch.rand(500, 2, 4, generator=generator, dtype=torch.float64)))
    winner, loser = select(path_reward, 0.0)
    assert torch.equal(winner, path_reward.argmax(-1))
    assert torch.equal(loser, path_reward.argmin(-1))
    cold_winner, cold_loser = select(path_reward, 1e-7, gumbel)
    assert torch.equal(cold_winner, winner)
    assert torch.equal(cold_loser, loser)
    torch.testing.assert_close(branch_weights(path_reward.double(), 1e-7), branch_weights(path_reward.double(), 0.0))
    warm_winner, _ = select(path_reward, 10.0, gumbel)
    assert not torch.equal(warm_winner, winner)


def test_selection_is_per_prompt():
    """The public code took argmax and argmin of the flattened batch."""
    winner, loser = select(torch.tensor([[1.0, 2.0, 0.0], [30.0, 10.0, 20.0]]))
    assert winner.tolist() == [1, 0]
    assert loser.tolist() == [2, 1]


def test_equal_rewards_still_give_two_branches():
    winner, loser = select(torch.full((3, 4), 7.0))
    assert (winner != loser).all()


def test_drawn_winners_and_losers_follow_the_softmax():
    draws, temperature = 40_000, 2.0
    path_reward = torch.tensor([1.0, 3.0, 0.0, 2.0], dtype=torch.float64)
    gumbel = torch.from_numpy(np.random.default_rng(0).gumbel(size=(draws, 2, 4)))
    winner, loser = select(path_reward.expand(draws, 4), temperature, gumbel)
    expected = torch.softmax(path_reward / temperature, 0)
    torch.testing.assert_close(torch.bincount(winner, minlength=4).double() / draws, expected, atol=0.01, rtol=0)
    won = loser[winner == 1]  # given branch 1 won, losers follow softmax(−S / λ) over the others
    expected = torch.softmax(-path_reward / temperature + torch.tensor([0, -torch.inf, 0, 0]), 0)
    torch.testing.assert_close(torch.bincount(won, minlength=4).double() / len(won), expected, atol=0.015, rtol=0)
    assert (winner != loser).all()


def test_selection_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="two branches"):
        select(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="Gumbel"):
        select(torch.zeros(2, 3), temperature=1.0)
