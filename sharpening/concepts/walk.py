"""One prompt, walked through the method by the functions that train: images, noised states, branches, path rewards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from sharpening.branching import branch
from sharpening.path_integral import path_rewards, select
from sharpening.policies.base import Policy
from sharpening.rewards.base import ScoreFn
from sharpening.sampling import sample
from sharpening.seeds import noise


@dataclass(frozen=True)
class Noising:
    """One image at every place of the sampler's grid.

    Attributes:
        timesteps: of the grid, descending.
        states: x_t, decoded: uint8 `[T, H, W, 3]`.
        predicted: x̂_0(x_t, t), decoded, alike.
        rewards: of the predictions.
    """

    timesteps: list[int]
    states: np.ndarray
    predicted: np.ndarray
    rewards: np.ndarray


@dataclass(frozen=True)
class Walk:
    """A prompt's n images, branched at K timesteps for m states each, and who won.

    Attributes:
        images: x_0 of each branch, decoded: uint8 `[n, H, W, 3]`.
        timesteps: of each state `[K, m]`.
        exists: which states there are `[K, m]`; near the clean end there are fewer than m.
        predicted: x̂_0 at each state, decoded: uint8 `[K, n, m, H, W, 3]`.
        rewards: of the predictions `[K, n, m]`.
        paths: S, the mean over all states of a branch `[n]` (Eq. 8).
        winner: place of the branch with the highest S.
        loser: place of the branch with the lowest.
    """

    images: np.ndarray
    timesteps: np.ndarray
    exists: np.ndarray
    predicted: np.ndarray
    rewards: np.ndarray
    paths: np.ndarray
    winner: int
    loser: int


def drawn(policy: Policy, prompt: str, count: int, steps: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Clean latents of a prompt, by the sampler.

    Args:
        policy: the model.
        prompt: the prompt.
        count: latents.
        steps: sampler steps.
        scale: classifier-free guidance; 1 is none.
        seed: of their noise, which depends on nothing else.

    Returns:
        x_0 `[count, C, H, W]`.
    """
    starts = torch.stack([noise(policy.latent_shape, seed, "concepts", i) for i in range(count)])
    return sample(policy, policy.encode([prompt] * count), starts, steps, scale)


def noised(policy: Policy, score: ScoreFn, prompt: str, steps: int, seed: int = 0) -> Noising:
    """Noise one image to every timestep of the grid, and predict it back.

    Args:
        policy: the model.
        score: the reward.
        prompt: the prompt.
        steps: T, places of the grid.
        seed: of the noise.

    Returns:
        What is seen at each.
    """
    grid = policy.timesteps(steps)
    x0 = drawn(policy, prompt, 1, steps, seed=seed).expand(steps, -1, -1, -1)
    eps = noise(policy.latent_shape, seed, "concepts", "eps").expand_as(x0)
    x_t = policy.add_noise(x0, eps, grid)
    with torch.no_grad():
        prediction = policy.predict(x_t, grid, policy.encode([prompt] * steps), 1.0)
    predicted = policy.decode(prediction.x0)
    rewards = np.asarray(score(predicted, [prompt] * steps).values)
    return Noising(grid.tolist(), policy.decode(x_t), predicted, rewards)


def walk(
    policy: Policy, score: ScoreFn, prompt: str, branches: int, states: int, places: list[int], steps: int,
    seed: int = 0,
) -> Walk:  # fmt: skip
    """Branch a prompt's images at several timesteps and judge every state, as a rollout does.

    Args:
        policy: the model.
        score: the reward.
        prompt: the prompt.
        branches: n.
        states: m.
        places: K places in the grid, 0 being the noisiest.
        steps: T, the sampler's steps.
        seed: of all noise.

    Returns:
        The walk.
    """
    times = len(places)
    x0 = drawn(policy, prompt, branches, steps, seed=seed)
    eps = torch.stack([noise(policy.latent_shape, seed, "concepts", "branch", place) for place in places])
    found = branch(
        policy, policy.encode([prompt] * times), x0.expand(times, *x0.shape), torch.tensor(places),
        eps[:, None].expand(times, *x0.shape), states, policy.timesteps(steps),
    )  # fmt: skip
    images = policy.decode(x0)
    predicted = policy.decode(found.x0.flatten(0, 2)).reshape(times, branches, states, *images.shape[1:])
    values = score(predicted.reshape(-1, *predicted.shape[3:]), [prompt] * (times * branches * states)).values
    rewards: Float[torch.Tensor, "time branch step"] = torch.from_numpy(np.asarray(values)).reshape(
        times, branches, states
    )
    paths = path_rewards(rewards, found.mask).mean(0, keepdim=True)
    winner, loser = select(paths)
    return Walk(
        images, found.timesteps.numpy(), found.mask.numpy(), predicted, rewards.numpy(), paths[0].numpy(),
        int(winner), int(loser),
    )  # fmt: skip
