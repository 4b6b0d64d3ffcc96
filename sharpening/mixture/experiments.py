"""The methods and searches on the world of scalars, each with the setting the page and the tests report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm

from sharpening.data.source import Batch, Kind, PromptSource, Source
from sharpening.loop import train_in_process
from sharpening.methods import load_method
from sharpening.mixture.law import Shape, World, distance, shape
from sharpening.mixture.policy import MixturePolicy, linear_reward, scalars
from sharpening.options import MethodOptions, SharpeningOptions, TrainingOptions
from sharpening.options.ddpo import DDPOOptions
from sharpening.options.sft import SFTOptions
from sharpening.rewards.base import ScoreFn, Scores
from sharpening.sampling import sample
from sharpening.search import load_search
from sharpening.search.base import SearchSeeds
from sharpening.seeds import generator

Draws = dict[str, Float[np.ndarray, " sample"]]
"""Samples by prompt."""
Watch = Callable[[int, MixturePolicy], None]
"""Called after each update with the number of updates so far."""

STEPS = 20
"""Sampler steps, in training, in searches and in every measurement."""
SLOPE = 1.0
"""κ = 1/β of the law p* that all are measured against."""

SHARPENING = SharpeningOptions(
    rollout_steps=STEPS, branches=2, temperature=1.0, beta=1.25, snr_gamma=0.0, timesteps_per_rollout=4
)
"""Two branches, the winner drawn with probability `σ((S_1 − S_2)/λ)`: the preferences of Bradley and Terry that DPO
assumes, for which its loss is least at `log ratio = S/(βλ)` plus a constant: a tilt of κ ∝ 1/(βλ). The factor belongs
to the surrogate of the log ratio; this β was measured to give κ = 1."""
DDPO = DDPOOptions(rollout_steps=STEPS, branches=4, timesteps_per_rollout=10, noisy_share=1.0, clip_range=0.2)
"""A scalar is one element, so its log-probabilities are sums already and PPO's usual clip range fits."""
SFT = SFTOptions(rollout_steps=STEPS, branches=4)


def _training(
    updates: int, prompts: int, learning_rate: float, scheduler: Literal["constant", "cosine"] = "cosine"
) -> TrainingOptions:
    """Updates whose whole experience is one batch."""
    return TrainingOptions(
        updates=updates,
        prompts_per_update=prompts,
        rollout_batch_size=prompts,
        train_batch_size=100_000,
        learning_rate=learning_rate,
        lr_scheduler=scheduler,
    )


class MixtureImages:
    """Images drawn from a world's base laws, as a source for methods that learn from images.

    Attributes:
        kind: "images".
    """

    kind: Kind = "images"

    def __init__(self, world: World, count: int = 512) -> None:
        """Draw them.

        Args:
            world: the laws.
            count: images of each prompt.
        """
        self._prompts = [prompt for prompt in world.prompts for _ in range(count)]
        x = np.concatenate([law.draw(count, generator(0, "image", prompt)) for prompt, law in world.laws.items()])
        self._images = MixturePolicy(world).decode(torch.from_numpy(x).view(-1, 1, 1, 1))[:, None]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._prompts)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Prompts of some images.

        Args:
            indices: their places.

        Returns:
            The prompts.
        """
        return [self._prompts[i] for i in indices]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some images with their prompts.

        Args:
            indices: their places.

        Returns:
            A batch with `k = 1`.
        """
        return Batch(self.prompts(indices), self._images[list(indices)])


def draw(policy: MixturePolicy, count: int = 1000, steps: int = STEPS) -> Draws:
    """What a policy samples, without chance: DDIM is a monotone map of noise here, applied to the noise's quantiles.

    Args:
        policy: the model.
        count: samples of each prompt.
        steps: sampler steps.

    Returns:
        Samples by prompt.
    """
    quantiles = torch.from_numpy(norm.ppf((np.arange(count) + 0.5) / count)).float().view(-1, 1, 1, 1)
    drawn = {c: sample(policy, policy.encode([c] * count), quantiles, steps) for c in policy.world.prompts}
    return {c: x.flatten().double().numpy() for c, x in drawn.items()}


def _trained(
    name: str,
    options: MethodOptions,
    training: TrainingOptions,
    world: World,
    score: ScoreFn,
    source: Source,
    watch: Watch | None = None,
) -> MixturePolicy:
    policy, method = MixturePolicy(world), load_method(name, options)
    after = None if watch is None else lambda update, _: watch(update + 1, policy)
    train_in_process(policy, method, score, source, training, after)
    return policy


def _prompts(world: World) -> PromptSource:
    return PromptSource(world.prompts * 64)


def sharpened(
    world: World,
    score: ScoreFn = linear_reward,
    updates: int = 200,
    options: SharpeningOptions = SHARPENING,
    watch: Watch | None = None,
) -> MixturePolicy:
    """RLHF sharpening.

    Args:
        world: the base laws.
        score: the reward.
        updates: of 64 prompts.
        options: the method's options.
        watch: looks on.

    Returns:
        The trained policy.
    """
    return _trained("rlhf", options, _training(updates, 64, 4e-3), world, score, _prompts(world), watch)


def ddpo(world: World, score: ScoreFn = linear_reward, updates: int = 50, watch: Watch | None = None) -> MixturePolicy:
    """DDPO, which nothing holds back: by default it stops where its reward is about that of p*.

    Args:
        world: the base laws.
        score: the reward.
        updates: of 32 prompts.
        watch: looks on.

    Returns:
        The trained policy.
    """
    return _trained("ddpo", DDPO, _training(updates, 32, 3e-4, "constant"), world, score, _prompts(world), watch)


def sft(world: World, score: ScoreFn = linear_reward, updates: int = 100, options: SFTOptions = SFT) -> MixturePolicy:
    """SFT sharpening on images of the base laws.

    Args:
        world: the base laws.
        score: the reward.
        updates: of 64 images.
        options: the method's options.

    Returns:
        The trained policy.
    """
    return _trained("sft", options, _training(updates, 64, 1e-3), world, score, MixtureImages(world))


class Recorder:
    """A reward that remembers what it was last asked.

    Attributes:
        last: scalars and prompts of the last call's images.
    """

    def __init__(self, score: ScoreFn) -> None:
        """Nothing is remembered yet.

        Args:
            score: the reward.
        """
        self._score = score
        self.last: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0, dtype=str))

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Scores:
        """Score images and remember them."""
        self.last = scalars(images), np.array(prompts)
        return self._score(images, prompts)


def _search(world: World, name: str, budget: int, runs: int, score: ScoreFn, **options: object) -> tuple[Draws, Draws]:
    """What a search returns, and what it scored last, from `runs` independent runs of each prompt."""
    prompts, recorder = [c for c in world.prompts for _ in range(runs)], Recorder(score)
    seeds = SearchSeeds(0, tuple(range(len(prompts))))
    search = load_search(name, steps=STEPS, **options)
    found = search.search(MixturePolicy(world), recorder, prompts, budget, seeds)
    returned, last = (scalars(found.images), np.array(prompts)), recorder.last
    best, scored = ({c: x[asked == c] for c in world.prompts} for x, asked in (returned, last))
    return best, scored


def particles(world: World, count: int, total: int = 1280, score: ScoreFn = linear_reward) -> Draws:
    """The final particles of FK steering, which are a sample of its law; the search itself returns the best of them.

    The potentials multiply to `exp(κ r(x̂_0))` of the last step, whose x̂_0 is the sample itself.

    Args:
        world: the base laws.
        count: N, particles of a run; 1 is the base.
        total: particles of each prompt over all runs, a multiple of N.
        score: the reward.

    Returns:
        Particles by prompt.
    """
    spots = {"resample_from": 10, "resample_to": STEPS - 1, "resample_every": 3}
    return _search(
        world, "fk_steering", STEPS * count, total // count, score, reward_scale=SLOPE, adaptive=False, **spots
    )[1]


def best_of(world: World, count: int, runs: int = 640, score: ScoreFn = linear_reward) -> Draws:
    """Random search: the best of N samples, whose law has the distribution function F^N.

    Args:
        world: the base laws.
        count: N.
        runs: independent runs of each prompt.
        score: the reward.

    Returns:
        The images returned, by prompt.
    """
    return _search(world, "random", STEPS * count, runs, score)[0]


def guided(world: World, candidates: int = 16, runs: int = 320, score: ScoreFn = linear_reward) -> Draws:
    """Free²Guide in its path-integral form: every step takes the weighted mean of its noises.

    Args:
        world: the base laws.
        candidates: noises a step.
        runs: independent runs of each prompt.
        score: the reward.

    Returns:
        The images returned, by prompt.
    """
    settings = {"form": "path_integral", "temperature": 1 / SLOPE, "guided_steps": STEPS - 2}
    budget = STEPS * (candidates + 1)
    return _search(world, "free2guide", budget, runs, score, candidates=candidates, **settings)[0]


SYSTEMS: dict[str, Callable[[World], Draws]] = {
    "base": lambda world: draw(MixturePolicy(world)),
    "RLHF sharpening": lambda world: draw(sharpened(world)),
    "DDPO": lambda world: draw(ddpo(world)),
    "FK steering, 64 particles": lambda world: particles(world, 64),
    "Free²Guide, path integral": guided,
    "SFT sharpening": lambda world: draw(sft(world)),
}
"""What the page compares, by name."""


@dataclass(frozen=True)
class Measured:
    """How far a system has moved, and to what.

    Attributes:
        reward: mean reward over prompts.
        to_optimum: Wasserstein-1 distance to p* of κ = 1, the mean over prompts.
        slope: κ of the linear tilt with the same mean reward.
        to_tilt: distance to that tilt, the mean over prompts.
        shapes: halves of each prompt's samples.
        tilt_shapes: halves of the tilt's laws.
    """

    reward: float
    to_optimum: float
    slope: float
    to_tilt: float
    shapes: dict[str, Shape]
    tilt_shapes: dict[str, Shape]


def measure(draws: Draws, world: World) -> Measured:
    """Hold samples against the closed form.

    Args:
        draws: samples by prompt.
        world: the base laws.

    Returns:
        The figures.
    """
    reward = float(np.mean([x.mean() for x in draws.values()]))
    slope = world.tilt_to(reward)
    optimum, tilt = world.tilt(SLOPE), world.tilt(slope)
    return Measured(
        reward=reward,
        to_optimum=float(np.mean([distance(x, optimum.laws[c]) for c, x in draws.items()])),
        slope=slope,
        to_tilt=float(np.mean([distance(x, tilt.laws[c]) for c, x in draws.items()])),
        shapes={c: shape(x) for c, x in draws.items()},
        tilt_shapes={c: shape(law.quantiles(4000)) for c, law in tilt.laws.items()},
    )


def curve(train: Callable[..., MixturePolicy], world: World, updates: int, every: int = 10) -> dict[int, float]:
    """Distance to p* during training.

    Args:
        train: `sharpened` or `ddpo`.
        world: the base laws.
        updates: how long.
        every: updates between two measurements.

    Returns:
        Mean distance over prompts by number of updates.
    """
    found = {0: measure(draw(MixturePolicy(world)), world).to_optimum}

    def watch(update: int, policy: MixturePolicy) -> None:
        if update % every == 0:
            found[update] = measure(draw(policy), world).to_optimum

    train(world, updates=updates, watch=watch)
    return found
