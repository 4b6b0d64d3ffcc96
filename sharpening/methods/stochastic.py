"""Stochastic trajectories and the probabilities of their steps: denoising as a multi-step decision (DDPO, D3PO).

The last step is never learnt: where the clean end has no noise its deviation is 0, so it has no probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharpening.data.source import Batch
from sharpening.methods.base import Seeds, check_batch
from sharpening.methods.collecting import Stopwatch, precision, score_images, stratified_places
from sharpening.options.stochastic import StochasticOptions
from sharpening.policies.base import Condition, Policy
from sharpening.rewards.base import ScoreFn
from sharpening.seeds import noise


@dataclass(frozen=True)
class Transitions:
    """Clean latents of N samples, and the K steps of each that are learnt.

    Attributes:
        x_t: states before those steps.
        x_prev: states after them, the actions.
        timesteps: timestep of each x_t.
        log_prob: log-probability of each step when it was taken, in the arithmetic of the rollout.
        x0: the samples.
    """

    x_t: Float[Tensor, "sample time channel height width"]
    x_prev: Float[Tensor, "sample time channel height width"]
    timesteps: Int[Tensor, "sample time"]
    log_prob: Float[Tensor, "sample time"]
    x0: Float[Tensor, "sample channel height width"]


@dataclass(frozen=True)
class Rollout:
    """What a rollout task drew and how it scored; P prompts, Q of them without a failure, n samples of each.

    Attributes:
        x_t: states before the learnt steps, of the Q prompts.
        x_prev: states after them.
        timesteps: timesteps of the learnt steps, the same for the samples of a prompt.
        log_prob: log-probability of each learnt step when it was taken.
        rewards: reward of each sample, in the reward's unit.
        shared: the fields of an `Experience` that do not depend on how its groups are made.
    """

    x_t: Float[Tensor, "prompt branch time channel height width"]
    x_prev: Float[Tensor, "prompt branch time channel height width"]
    timesteps: Int[Tensor, "prompt branch time"]
    log_prob: Float[Tensor, "prompt branch time"]
    rewards: Float[Tensor, "prompt branch"]
    shared: dict[str, Any]


def gaussian_log_prob(
    x: Float[Tensor, "batch channel height width"],
    mean: Float[Tensor, "batch channel height width"],
    deviation: Float[Tensor, "batch 1 1 1"],
) -> Float[Tensor, " batch"]:
    """Log-probability of a step as a mean over elements, `mean[−(x − μ)²/2σ² − log σ − ½ log 2π]` (DDPO's code).

    Args:
        x: where the step went.
        mean: μ.
        deviation: σ, above 0.

    Returns:
        One log-probability a row, in nats per element.
    """
    element = -((x - mean) ** 2) / (2 * deviation**2) - deviation.log() - 0.5 * math.log(2 * math.pi)
    return element.mean(dim=(1, 2, 3))


def step_log_prob(
    policy: Policy,
    condition: Condition,
    x_t: Float[Tensor, "batch channel height width"],
    x_prev: Float[Tensor, "batch channel height width"],
    timesteps: Int[Tensor, " batch"],
    options: StochasticOptions,
) -> Float[Tensor, " batch"]:
    """`log π_θ(x_prev | x_t, c)`, guidance inside the mean as in the rollout.

    Args:
        policy: the model; gradients flow into its denoiser if they are enabled.
        condition: one row a step.
        x_t: states.
        x_prev: actions.
        timesteps: timesteps of the states.
        options: the rollout's sampler.

    Returns:
        One log-probability a row, on the policy's device.
    """
    x_t, x_prev, timesteps = (x.to(policy.device) for x in (x_t, x_prev, timesteps))
    prediction = policy.predict(x_t, timesteps, condition.to(policy.device), options.guidance_scale)
    previous = policy.previous(timesteps, options.rollout_steps)
    return gaussian_log_prob(x_prev, *policy.moments(timesteps, previous, prediction, options.eta))


@torch.no_grad()
def sample_transitions(
    policy: Policy,
    condition: Condition,
    initial: Float[Tensor, "sample channel height width"],
    step_noise: Callable[[int], Float[Tensor, "sample channel height width"]],
    places: Int[Tensor, "sample time"],
    options: StochasticOptions,
) -> Transitions:
    """Sample with DDIM at η and keep the steps that will be learnt; the other states are let go at once.

    Args:
        policy: the model.
        condition: one row a sample.
        initial: standard normal latents at the noisy end.
        step_noise: standard normal noise of the sampler's i-th step.
        places: places in the sampler's grid, rising, none of them the last.
        options: steps, guidance and η.

    Returns:
        The transitions, without a graph.
    """
    x_t = initial.to(policy.device)
    places = places.to(policy.device)
    before = x_t.new_zeros(*places.shape, *x_t.shape[1:])
    after, log_prob = torch.zeros_like(before), x_t.new_zeros(places.shape)
    grid = policy.timesteps(options.rollout_steps)
    for i, t in enumerate(grid.tolist()):
        rows = torch.full((len(x_t),), t, dtype=torch.long, device=x_t.device)
        t_prev = policy.previous(rows, options.rollout_steps)
        prediction = policy.predict(x_t, rows, condition, options.guidance_scale)
        x_prev = policy.step(x_t, rows, t_prev, prediction, options.eta, step_noise(i).to(x_t.device))
        kept = (places == i).nonzero(as_tuple=True)
        if len(kept[0]):
            taken = gaussian_log_prob(x_prev, *policy.moments(rows, t_prev, prediction, options.eta))
            before[kept], after[kept], log_prob[kept] = x_t[kept[0]], x_prev[kept[0]], taken[kept[0]]
        x_t = x_prev
    return Transitions(before, after, grid[places], log_prob, x_t)


@torch.no_grad()
def roll_out(
    policy: Policy,
    score: ScoreFn,
    batch: Batch,
    seeds: Seeds,
    samples: int,
    options: StochasticOptions,
    clock: Stopwatch,
    same_start: bool = False,
) -> Rollout:
    """Draw n samples of each prompt, decode and score them; prompts with a failure are left out.

    Args:
        policy: the present model.
        score: the reward; called once.
        batch: the task's prompts.
        seeds: counters of all random numbers; one slot a prompt.
        samples: n, samples of a prompt.
        options: the sampler and K.
        clock: books the time.
        same_start: whether a prompt's samples share their initial latent, so that only the steps' noise parts them.

    Returns:
        The rollout, on the CPU, without a graph.

    Raises:
        ValueError: if prompts and slots differ in number, or the reward answers for another number of images.
    """  # noqa: DOC502
    check_batch(batch, seeds)
    with clock("generate"):
        condition = policy.encode(batch.prompts)
        with precision(options, policy.device):
            drawn = _sample_prompts(policy, condition, seeds, samples, options, same_start)
    with clock("decode"), precision(options, policy.device):
        images = policy.decode(drawn.x0)
    with clock("reward"):
        owner = torch.arange(len(batch)).repeat_interleave(samples)
        rewards, failed = score_images(score, images, batch.prompts, owner)
    kept = [b for b in range(len(batch)) if b not in failed]
    x_t, x_prev, timesteps, log_prob = (
        x.cpu().unflatten(0, (len(batch), samples))[kept]
        for x in (drawn.x_t, drawn.x_prev, drawn.timesteps, drawn.log_prob)
    )
    shared = {
        "prompts": [batch.prompts[b] for b in kept],
        "slots": [seeds.slots[b] for b in kept],
        "update": seeds.update,
        "version": 0,
        "condition": condition.index(kept).to("cpu"),
        "dropped": [(seeds.slots[b], reason) for b, reason in sorted(failed.items())],
        "images_scored": len(images),
    }
    return Rollout(x_t, x_prev, timesteps, log_prob, rewards.unflatten(0, (len(batch), samples))[kept], shared)


def _sample_prompts(
    policy: Policy, condition: Condition, seeds: Seeds, samples: int, options: StochasticOptions, same_start: bool
) -> Transitions:
    """The samples of a task's prompts, those of a prompt in a row and learnt at the same timesteps."""

    def draw(purpose: str, *counters: int, branches: int = samples) -> Tensor:
        own = [(slot, k, *counters) for slot in seeds.slots for k in range(branches)]
        return torch.stack(
            [noise(policy.latent_shape, seeds.run_seed, purpose, seeds.update, *counter) for counter in own]
        )

    initial = draw("latent", branches=1).repeat_interleave(samples, dim=0) if same_start else draw("latent")
    places = stratified_places(seeds, options.learnable_steps, options.timesteps_per_rollout)
    return sample_transitions(
        policy,
        condition.repeat_interleave(samples),
        initial,
        lambda i: draw("step", i),
        places.repeat_interleave(samples, dim=0),
        options,
    )
