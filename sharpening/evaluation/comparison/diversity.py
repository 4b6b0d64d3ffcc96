"""How diverse images are: distance between two sets of images, and the spread of one prompt's images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy.linalg import qr, svdvals
from scipy.spatial.distance import pdist
from scipy.special import stdtrit

from sharpening.evaluation.statistics import CONFIDENCE, Comparison, Interval, compare

FeatureFn = Callable[[UInt8[np.ndarray, "image height width 3"]], Float[np.ndarray, "image feature"]]
"""Features of images, such as their CLIP embeddings."""

GROUPS = 20


@dataclass(frozen=True)
class Diversity:
    """Diversity of a system's images beside the base model's, same prompts and noise.

    Attributes:
        frechet: Fréchet distance between the two sets of images, in squared units of the features.
        spread: mean distance between images of one prompt; `before` is the base model's, `after` the system's.
    """

    frechet: Interval
    spread: Comparison


def diversity(
    features: Float[np.ndarray, "prompt image feature"], base: Float[np.ndarray, "prompt image feature"]
) -> Diversity:
    """Compare a system's images with the base model's.

    Args:
        features: of several images a prompt, each of another noise.
        base: of the base model's images, same prompts and noises.

    Returns:
        Fréchet distance between the sets, and the spread of a prompt's images before and after.
    """
    return Diversity(frechet_interval(features, base), compare(spread(base), spread(features)))


def image_features(
    images: UInt8[np.ndarray, "prompt image height width 3"], features: FeatureFn
) -> Float[np.ndarray, "prompt image feature"]:
    """Features of several images a prompt.

    Args:
        images: the images.
        features: called once with all of them.

    Returns:
        Their features.
    """
    found = features(images.reshape(-1, *images.shape[2:]))
    return np.asarray(found, dtype=np.float64).reshape(*images.shape[:2], -1)


def spread(features: Float[np.ndarray, "prompt image feature"]) -> Float[np.ndarray, " prompt"]:
    """Mean Euclidean distance between a prompt's images, over all pairs.

    Args:
        features: of at least two images a prompt.

    Returns:
        One distance a prompt, in units of the features.

    Raises:
        ValueError: if there is one image a prompt.
    """
    if features.shape[1] < 2:
        raise ValueError("the spread of one image a prompt is not defined; draw each prompt with two seeds or more")
    return np.array([pdist(of_prompt).mean() for of_prompt in features])


def frechet_distance(first: Float[np.ndarray, "image feature"], second: Float[np.ndarray, "other feature"]) -> float:
    """Fréchet distance of the normal distributions fitted to two sets of features (arXiv 1706.08500, Eq. 6).

    `‖μ_1 − μ_2‖² + tr(Σ_1 + Σ_2 − 2(Σ_1 Σ_2)^½)`. With `Σ = RᵀR` (R from the QR decomposition of the centred
    features) the last trace is the sum of the singular values of `R_1 R_2ᵀ`: no matrix root is taken, and singular
    covariances, of fewer images than features, do no harm.

    Args:
        first: features of at least two images.
        second: features of at least two images.

    Returns:
        The distance, at least 0, in squared units of the features. Few images bias it upwards: compare sets of
        equal size, or use `frechet_interval`.
    """
    roots = [qr(_standardised(one), mode="r")[0][: one.shape[1]] for one in (first, second)]
    cross = svdvals(roots[0] @ roots[1].T).sum()
    means = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    return max(0.0, float(means + sum((root**2).sum() for root in roots) - 2 * cross))


def _standardised(features: Float[np.ndarray, "image feature"]) -> Float[np.ndarray, "image feature"]:
    """Centred features A with `AᵀA` the sample covariance."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} images have no covariance; pass two or more")
    return (features - features.mean(axis=0)) / (len(features) - 1) ** 0.5


def frechet_interval(
    first: Float[np.ndarray, "prompt image feature"],
    second: Float[np.ndarray, "prompt image feature"],
    groups: int = GROUPS,
) -> Interval:
    """Fréchet distance with its bias removed, and its interval, by leaving out groups of prompts (jackknife).

    The bias of the plain distance falls as 1 / images (arXiv 1911.07023), which is what the jackknife removes:
    `g·d − (g−1)·mean(d_(−j))`. A bootstrap would add the same bias once more. All images of a prompt are left out
    together, in both sets where they are of the same prompts, since they are not independent of one another.

    Args:
        first: features of one or more images a prompt.
        second: of the other set.
        groups: groups of prompts; at most the number of prompts.

    Returns:
        The distance and Student's t interval with `groups − 1` degrees of freedom. Where the sets are alike, both
        may be below zero.

    Raises:
        ValueError: if there are fewer prompts than two.
    """
    groups = min(groups, len(first), len(second))
    if groups < 2:
        raise ValueError("an interval needs images of two prompts or more; pass more prompts")
    whole = frechet_distance(_rows(first), _rows(second))
    without = np.array([
        frechet_distance(*(_rows(one[np.arange(len(one)) % groups != group]) for one in (first, second)))
        for group in range(groups)
    ])  # fmt: skip
    mean = groups * whole - (groups - 1) * float(without.mean())
    error = float(((groups - 1) / groups * ((without - without.mean()) ** 2).sum()) ** 0.5)
    half = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def _rows(features: Float[np.ndarray, "prompt image feature"]) -> Float[np.ndarray, "row feature"]:
    return features.reshape(-1, features.shape[-1])
