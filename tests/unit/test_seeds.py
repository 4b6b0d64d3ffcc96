"""Counter-based random numbers."""

import numpy as np
import torch

from sharpening.seeds import generator, noise


def test_equal_counters_give_equal_numbers_in_any_order():
    first = {slot: noise((8, 8, 8), 7, "latent", 3, slot, 0) for slot in (0, 1, 2)}
    second = {slot: noise((8, 8, 8), 7, "latent", 3, slot, 0) for slot in (2, 0, 1)}
    assert all(torch.equal(first[slot], second[slot]) for slot in first)


def test_any_changed_counter_changes_the_numbers():
    places = [
        (7, "latent", 3, 1, 0),
        (8, "latent", 3, 1, 0),
        (7, "branch", 3, 1, 0),
        (7, "latent", 4, 1, 0),
        (7, "latent", 3, 2, 0),
        (7, "latent", 3, 1, 1),
        (7, "latent", 3, 1),
        (7, "latent", 31, 0),
        (7, "latent", "3", 1, 0),
    ]
    draws = np.stack([noise((512,), *place).numpy() for place in places])
    correlation = np.corrcoef(draws) - np.eye(len(places))
    assert np.abs(correlation).max() < 0.2  # 4.5 standard deviations of 1/sqrt(512)


def test_noise_is_standard_normal_float32():
    draw = noise((100_000,), 0, "latent")
    assert draw.dtype == torch.float32
    assert abs(draw.mean()) < 0.015
    assert abs(draw.std() - 1) < 0.01


def test_numbers_stay_what_they_are():
    """A resumed run, another machine and a later release draw the same."""
    assert generator(0, "timestep", 1, 2, 3).integers(0, 1000, size=4).tolist() == [692, 775, 567, 972]
