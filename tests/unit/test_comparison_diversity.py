"""Fréchet distance against the closed form and against a matrix root; the spread of a prompt's images."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from sharpening.evaluation.comparison.diversity import (
    diversity,
    frechet_distance,
    frechet_interval,
    image_features,
    spread,
)


def by_matrix_root(first, second):
    """The formula as it is printed."""
    covariances = [np.cov(one, rowvar=False) for one in (first, second)]
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    gap = first.mean(0) - second.mean(0)
    return gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_distance_in_one_dimension_by_hand():
    # Normals N(1, 2²) and N(4, 5²) by their samples: (1 − 4)² + (2 − 5)² = 18.
    unit = np.array([-1.0, 1.0]) / np.sqrt(2)  # sample variance 1
    assert frechet_distance((1 + 2 * unit)[:, None], (4 + 5 * unit)[:, None]) == pytest.approx(18.0)


def test_distance_is_the_printed_formula():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    first, second = rng.normal(size=(80, 6)) @ mix, rng.normal(size=(50, 6)) * [1, 2, 3, 1, 2, 3] + 0.5
    assert frechet_distance(first, second) == pytest.approx(by_matrix_root(first, second), rel=1e-9)


def test_distance_of_fewer_images_than_features():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(5, 40))
    assert frechet_distance(first, first[::-1]) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(first, first + 0.5) == pytest.approx(40 * 0.25)
    assert frechet_distance(first, 3 * (first - first.mean(0)) + first.mean(0)) == pytest.approx(
        4 * first.var(axis=0, ddof=1).sum()
    )
    with pytest.raises(ValueError, match="two or more"):
        frechet_distance(first[:1], first)


def test_jackknife_removes_the_bias_and_its_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    shift, scale = np.linspace(0, 0.4, 6), np.linspace(1, 1.5, 6)
    truth = (shift**2).sum() + ((scale - 1) ** 2).sum()
    plain, found = [], []
    for _ in range(150):
        first, second = rng.normal(size=(80, 2, 6)), shift + scale * rng.normal(size=(80, 2, 6))
        plain.append(frechet_distance(first.reshape(-1, 6), second.reshape(-1, 6)))
        found.append(frechet_interval(first, second))
    error = np.std(plain) / np.sqrt(150)
    assert np.mean(plain) - truth > 4 * error
    assert abs(np.mean([one.mean for one in found]) - truth) < 3.5 * error
    assert 0.89 < np.mean([one.low <= truth <= one.high for one in found]) < 0.99


def test_spread_is_the_mean_distance_of_all_pairs():
    features = np.array([[[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]], [[1.0, 1.0]] * 3])
    assert spread(features) == pytest.approx([(5 + 4 + 3) / 3, 0.0])
    with pytest.raises(ValueError, match="two seeds"):
        spread(features[:, :1])


def test_a_system_that_draws_less_diverse_images_shows_it():
    base = np.random.default_rng(2).normal(size=(60, 4, 8))
    centre = base.mean(axis=1, keepdims=True)
    found = diversity(centre + 0.5 * (base - centre), base)
    assert found.spread.after.mean == pytest.approx(0.5 * found.spread.before.mean)
    assert found.spread.difference.high < 0
    assert found.frechet.low > 0


def test_features_come_back_by_prompt_and_image():
    images = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    found = image_features(images, lambda flat: flat.reshape(len(flat), -1)[:, :5])
    assert found.shape == (2, 3, 5)
    assert found[1, 2].tolist() == images[1, 2].ravel()[:5].tolist()
