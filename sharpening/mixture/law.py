"""Gaussian mixtures on the line, and what a reward makes of them under KL-regularised maximisation.

Fine-tuning with a reward r and a KL penalty of strength β (Eq. 10) looks for the law that maximises
`E_q[r] − β KL(q ‖ p)`. Written with `p*(x) = p(x) exp(r(x)/β) / Z`, the objective is `β log Z − β KL(q ‖ p*)`, so p* is
the one maximum. Let κ = 1/β and `κ r(x) = a x − b x²/2` up to a constant. Each component `w N(μ, s²)` of p times that
exponential is Gaussian again, since the exponent stays quadratic; completing the square gives

    1/s'² = 1/s² + b,    μ' = s'² (μ/s² + a),    w' ∝ w (s'/s) exp(μ'²/(2 s'²) − μ²/(2 s²)).

For a linear reward (b = 0): every mean shifts by a s², every weight is multiplied by `exp(a μ + a² s²/2)`, and widths
stay. So p* is a Gaussian mixture in closed form, and κ ↦ p* is a path from p (κ = 0) towards ever higher reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.stats import norm, wasserstein_distance

Array = np.ndarray


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture `Σ_k w_k N(μ_k, s_k²)` on the line.

    Attributes:
        weights: w, adding up to 1.
        means: μ.
        deviations: s, above 0.
    """

    weights: Float[Array, " component"]
    means: Float[Array, " component"]
    deviations: Float[Array, " component"]

    @property
    def mean(self) -> float:
        """Mean of the law."""
        return float(self.weights @ self.means)

    def density(self, x: Float[Array, " point"]) -> Float[Array, " point"]:
        """Probability density.

        Args:
            x: where.

        Returns:
            One density a point.
        """
        return norm.pdf(x[:, None], self.means, self.deviations) @ self.weights

    def cdf(self, x: Float[Array, " point"]) -> Float[Array, " point"]:
        """Cumulative distribution function F.

        Args:
            x: where.

        Returns:
            One probability a point.
        """
        return norm.cdf(x[:, None], self.means, self.deviations) @ self.weights

    def quantiles(self, count: int) -> Float[Array, " count"]:
        """The law as evenly weighted points: F⁻¹ at the middles of equal parts of [0, 1].

        Args:
            count: how many.

        Returns:
            Points, rising; interpolated in a table of F, finer than the points are apart.
        """
        reach = 8 * self.deviations
        x = np.linspace((self.means - reach).min(), (self.means + reach).max(), 20_000)
        return np.interp((np.arange(count) + 0.5) / count, self.cdf(x), x)

    def draw(self, count: int, generator: np.random.Generator) -> Float[Array, " count"]:
        """Independent samples.

        Args:
            count: how many.
            generator: source of the random numbers.

        Returns:
            The samples.
        """
        component = generator.choice(len(self.weights), size=count, p=self.weights)
        return generator.normal(self.means[component], self.deviations[component])

    def tilt(self, slope: float, curvature: float = 0.0) -> Mixture:
        """The law times `exp(a x − b x²/2)`, normalised; the module's docstring derives it.

        Args:
            slope: a, the reward's slope over β.
            curvature: b.

        Returns:
            The tilted law, a mixture of as many components.

        Raises:
            ValueError: if b is so negative that the product has no finite integral.
        """
        precision = self.deviations**-2.0 + curvature
        if (precision <= 0).any():
            raise ValueError(f"a curvature of {curvature} has no tilted law; pass one above −1/s² of every component")
        deviations = precision**-0.5
        means = (self.means / self.deviations**2 + slope) / precision
        gain = 0.5 * ((means / deviations) ** 2 - (self.means / self.deviations) ** 2)
        log_weights = np.log(self.weights * deviations / self.deviations) + gain
        weights = np.exp(log_weights - log_weights.max())
        return Mixture(weights / weights.sum(), means, deviations)


@dataclass(frozen=True)
class World:
    """What the model draws: one law a prompt.

    Attributes:
        laws: p(x | c), by prompt.
    """

    laws: dict[str, Mixture]

    @property
    def prompts(self) -> list[str]:
        """The prompts, in order."""
        return list(self.laws)

    @property
    def mean(self) -> float:
        """Mean over prompts of the laws' means, which is the mean reward where the reward is x."""
        return float(np.mean([law.mean for law in self.laws.values()]))

    def tilt(self, slope: float, curvature: float = 0.0) -> World:
        """Every prompt's law tilted alike, `p(x | c) exp(a x − b x²/2) / Z(c)`.

        Args:
            slope: a.
            curvature: b.

        Returns:
            The tilted world.
        """
        return World({prompt: law.tilt(slope, curvature) for prompt, law in self.laws.items()})

    def tilt_to(self, mean: float) -> float:
        """The linear tilt whose mean is a given one.

        Of all laws with that mean it is the one nearest to the base in KL: what an ideal method would have reached
        there.

        Args:
            mean: wanted mean over prompts.

        Returns:
            Its slope κ, 1/β for the reward x.
        """
        return float(brentq(lambda slope: self.tilt(slope).mean - mean, -50, 50))


def default_world() -> World:
    """Two prompts over the same two modes: "left" is mostly below 0, "right" as often above."""
    means, deviations = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    weights = {"left": np.array([0.8, 0.2]), "right": np.array([0.5, 0.5])}
    return World({prompt: Mixture(w, means, deviations) for prompt, w in weights.items()})


def distance(samples: Float[Array, " sample"], law: Mixture) -> float:
    """Wasserstein-1 distance of samples from a law, in the unit of x.

    Args:
        samples: evenly weighted.
        law: the law, taken at 4,000 quantiles.

    Returns:
        The distance; 0 means equal, and a law shifted by δ is δ away.
    """
    return float(wasserstein_distance(samples, law.quantiles(4000)))


@dataclass(frozen=True)
class Shape:
    """A law's two halves, which tell a tilt from a collapse or a mere shift.

    Attributes:
        upper: share above 0.
        lower_width: standard deviation of what lies below 0.
        upper_width: standard deviation of what lies above 0.
    """

    upper: float
    lower_width: float
    upper_width: float


def shape(samples: Float[Array, " sample"]) -> Shape:
    """Measure the halves of samples.

    Args:
        samples: evenly weighted.

    Returns:
        Their shape; the width of an empty half is NaN. Of a law's quantiles it is the law's.
    """
    above = samples > 0
    widths = [float(half.std()) if len(half) else np.nan for half in (samples[~above], samples[above])]
    return Shape(float(above.mean()), *widths)
