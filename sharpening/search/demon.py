"""Demon: steer a stochastic sampler by weighting its noises with their rewards (`aiiu-lab/DemonSampling`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sharpening.options.base import require
from sharpening.policies.base import Prediction
from sharpening.search.base import SearchOptions, require_positive
from sharpening.search.runs import SessionSearch, candidates_for
from sharpening.search.session import CLEAN, Session
from sharpening.search.sigma import MOST_NOISE, karras_timesteps, sigma_of


@dataclass(frozen=True)
class DemonOptions(SearchOptions):
    """Options of Demon. `steps` are levels of Karras' grid.

    Published for SDXL: 16 noises, 64 levels with ρ = 7, β = 0.1, tanh weights, estimates of up to 20 Heun steps, Heun's
    method, the ODE below σ = 0.11. β, ρ, the weights and that last level are kept; noises and steps are cut to what a
    dozen levels and some hundred evaluations can use. At a dozen levels Heun's method would leave more noise than the
    next level has, so the default solver is the exact solution of the same stochastic differential equation for a
    fixed x̂_0.

    Attributes:
        candidates: K, noises drawn a step; fewer where the budget is short.
        weighting: "tanh" of the standardised rewards, or "softmax" of them.
        beta: β, how much noise the sampler replaces: `g = √(2β) σ`.
        rho: ρ of Karras' grid.
        ode_below: σ below which the rest is the ODE.
        estimate_steps: most ODE steps of a clean estimate; fewer as σ falls.
        solver: "exact" for a fixed x̂_0, one prediction a step, or "heun", two.
    """

    candidates: int = 8
    weighting: Literal["tanh", "softmax"] = "tanh"
    beta: float = 0.1
    rho: float = 7.0
    ode_below: float = 0.11
    estimate_steps: int = 2
    solver: Literal["exact", "heun"] = "exact"

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: if an option has a value that cannot work.
        """  # noqa: DOC502
        super().__post_init__()
        require(self.candidates >= 2, "candidates", "is below 2; a choice needs 2 or more")
        require(self.estimate_steps >= 1, "estimate_steps", "is below 1; pass 1 or more")
        require(self.weighting in ("tanh", "softmax"), "weighting", "must be one of tanh, softmax")
        require(self.solver in ("exact", "heun"), "solver", "must be one of exact, heun")
        require_positive(self, "beta", "rho", "ode_below")


def demon_weights(
    rewards: Float[Tensor, "prompt candidate"], valid: Bool[Tensor, "prompt candidate"], weighting: str
) -> Float[Tensor, "prompt candidate"]:
    """Weights of the noises: `tanh((r − mean r) / std r)` or `softmax(r / std r)`; 0 for a noise without a score.

    The temperature is the standard deviation of this step's rewards. (The released code freezes it after the first
    step.)

    Args:
        rewards: r, in the reward's unit.
        valid: which of them exist.
        weighting: "tanh" or "softmax".

    Returns:
        Weights; all 1 where fewer than two rewards exist or they deviate by less than 1e-8.
    """
    count = valid.sum(1, keepdim=True)
    r = rewards.masked_fill(~valid, 0.0)
    centred = (r - r.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~valid, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    standard = centred / deviation.clamp(min=1e-8)
    weights = standard.tanh() if weighting == "tanh" else standard.masked_fill(~valid, -torch.inf).softmax(1)
    return torch.where(deviation < 1e-8, torch.ones_like(weights), weights)


def combine(
    z: Float[Tensor, "prompt candidate channel height width"], weights: Float[Tensor, "prompt candidate"]
) -> Float[Tensor, "prompt channel height width"]:
    """`z* = √dim · Σ w_k z_k / ‖Σ w_k z_k‖`: the weighted noise, as long as noise is.

    Args:
        z: the noises.
        weights: w.

    Returns:
        One noise a prompt.
    """
    total = torch.einsum("bk,bkchw->bchw", weights.to(z), z)
    length = total.flatten(1).norm(dim=1)[:, None, None, None]
    return math.sqrt(total[0].numel()) * total / length


class DemonSearch(SessionSearch[DemonOptions]):
    """At each step K noises are tried by the reward of a clean estimate, and the step is taken with their mixture.

    A run starts, as the sampler does, from standard normal noise. Where the budget does not pay for two noises, the
    step is the ODE's.
    """

    Options = DemonOptions

    @property
    def smallest(self) -> int:
        """Predictions of the ODE over the whole grid."""
        return self._rest(self.options.steps)

    def run(self, session: Session, number: int) -> None:
        """One image.

        Args:
            session: pays, scores and keeps the best.
            number: the run's number.
        """
        times = self._grid(session, session.times[0], self.options.steps)
        levels = sigma_of(session.policy, torch.tensor(times)).tolist()
        x = session.noise(1, "latent", first=number)
        for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
            z = torch.zeros_like(x)
            prediction, beta = session.predict(x, t), 0.0
            if t_next != CLEAN and levels[i + 1] >= self.options.ode_below:
                choices = sum(level >= self.options.ode_below for level in levels[i + 1 : -1])
                count = self._count(session, times[i + 1 :], levels[i + 1], choices)
                if count >= 2:
                    z = self._mixture(session, x, prediction, (t, t_next), count, (number, i))
                    beta = self.options.beta
            x = self._step(session, x, (t, t_next), prediction, beta, z)
        session.offer(session.score(x))

    def _grid(self, session: Session, first: int, steps: int) -> list[int]:
        return [*karras_timesteps(session.policy, first, session.times[-2], steps, self.options.rho), CLEAN]

    def _rest(self, steps: int) -> int:
        """Predictions of the last `steps` steps by the ODE; Heun's corrector cannot look beyond the clean end."""
        return 2 * steps - 1 if self.options.solver == "heun" and steps else steps

    def _count(self, session: Session, rest: list[int], level: float, choices: int) -> int:
        """Noises that a step tries, the prediction at x being paid for already."""
        heun = self.options.solver == "heun"
        price = len(self._estimate_grid(session, rest[0], level)) - 1 + heun
        purse = session.left - heun - self._rest(len(rest) - 1)
        return candidates_for(purse, price, choices, self.options.candidates)

    def _estimate_grid(self, session: Session, t: int, level: float) -> list[int]:
        """Fewer steps as σ falls, in proportion to its place on Karras' grid."""
        ends = sigma_of(session.policy, torch.tensor([session.times[0], session.times[-2]]))
        high, low, here = (min(value, MOST_NOISE) ** (1 / self.options.rho) for value in (*ends.tolist(), level))
        return self._grid(session, t, max(math.ceil(self.options.estimate_steps * (here - low) / (high - low)), 1))

    def _mixture(
        self,
        session: Session,
        x: Tensor,
        prediction: Prediction,
        times: tuple[int, int],
        count: int,
        counters: tuple[int, int],
    ) -> Float[Tensor, "prompt channel height width"]:
        """Try `count` noises and mix them by their rewards."""
        z = session.noise(count, "step", *counters)
        copies = torch.zeros(len(session.prompts), count, dtype=torch.long)
        spread = session.pick_prediction(prediction, copies)
        tried = self._step(session, session.pick(x, copies), times, spread, self.options.beta, z)
        level = float(sigma_of(session.policy, torch.tensor(times[1])))
        scored = session.score(session.walk(tried, self._estimate_grid(session, times[1], level)))
        weights = demon_weights(scored.rewards, scored.valid, self.options.weighting)
        return combine(z.unflatten(0, (-1, count)), weights)

    def _step(
        self, session: Session, x: Tensor, times: tuple[int, int], prediction: Prediction, beta: float, z: Tensor
    ) -> Float[Tensor, "row channel height width"]:
        if self.options.solver == "heun":
            return heun_step(session, x, times, prediction, beta, z)
        return exact_step(session, x, times, prediction, beta, z)


def exact_step(
    session: Session, x: Tensor, times: tuple[int, int], prediction: Prediction, beta: float, z: Tensor
) -> Float[Tensor, "row channel height width"]:
    """Solution of `dx = −(1 + βσ) σ s dσ + √(2β) σ dw` over one step for a fixed x̂_0, s being the score.

    In Karras' coordinates `x' = x̂_0 + σ' (e^{−βΔ} ε̂ + √(1 − e^{−2βΔ}) z)` with `Δ = σ − σ'` (our derivation): a DDIM
    step whose η gives this deviation.

    Args:
        session: the sampler.
        x: latents.
        times: where they are and where they go.
        prediction: the policy's prediction there.
        beta: β; 0 is the ODE.
        z: standard normal noise.

    Returns:
        Latents after the step.
    """
    t, t_next = (session.at(x, t) for t in times)
    if beta == 0:
        return session.step(x, *times, prediction)
    sigma, sigma_next = (float(sigma_of(session.policy, t[:1])) for t in (t, t_next))
    alpha_next = float(session.policy.levels(t_next[:1])[0])
    wanted = alpha_next * sigma_next * math.sqrt(-math.expm1(-2 * beta * (sigma - sigma_next)))
    full = session.policy.moments(t, t_next, prediction, 1.0)[1].flatten()[0]
    return session.step(x, *times, prediction, wanted / float(full), z)


def heun_step(
    session: Session, x: Tensor, times: tuple[int, int], prediction: Prediction, beta: float, z: Tensor
) -> Float[Tensor, "row channel height width"]:
    """Heun's method for `dx = f dσ + g dw`, `f = (1 + βσ) ε̂` and `g = √(2β) σ`, in Karras' coordinates.

    From pure noise, where σ is infinite, the step is the exact one.

    Args:
        session: the sampler; pays one more prediction a row unless the step ends at the clean end.
        x: latents.
        times: where they are and where they go.
        prediction: the policy's prediction there.
        beta: β; 0 is the ODE.
        z: standard normal noise.

    Returns:
        Latents after the step.
    """
    sigma, sigma_next = sigma_of(session.policy, torch.tensor(times)).tolist()
    if math.isinf(sigma):
        return exact_step(session, x, times, prediction, beta, z)
    scale, scale_next = (1 / session.policy.levels(torch.tensor(times))[0]).tolist()
    dt = sigma_next - sigma
    dw = math.sqrt(-dt) * z
    f, g = (1 + beta * sigma) * prediction.eps, math.sqrt(2 * beta) * sigma
    edm = scale * x
    guess = edm + f * dt + g * dw
    if times[1] == CLEAN:
        return guess / scale_next
    corrected = session.predict(guess / scale_next, times[1])
    f_next, g_next = (1 + beta * sigma_next) * corrected.eps, math.sqrt(2 * beta) * sigma_next
    return (edm + 0.5 * (f + f_next) * dt + 0.5 * (g + g_next) * dw) / scale_next
