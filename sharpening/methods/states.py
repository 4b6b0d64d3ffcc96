"""Noisy states of given images with the noise each is regressed to: what methods that learn from images share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sharpening import losses
from sharpening.data.source import Batch
from sharpening.methods.base import Experience, Loss, Seeds, check_batch
from sharpening.policies.base import Condition, Policy
from sharpening.seeds import generator, noise


@dataclass(kw_only=True)
class StateExperience(Experience):
    """States of G groups: n members (branches, or the images of a pair) of m states each.

    Attributes:
        x_t: `[G, n, m, C, H, W]`, the states.
        timesteps: `[G, m]`.
        mask: `[G, m]`, which states exist (branches are cut off at the clean end).
        target: `[G, n, m, C, H, W]`, the noise a state is regressed to.
    """

    x_t: Float[Tensor, "group member step channel height width"]
    timesteps: Int[Tensor, "group step"]
    mask: Bool[Tensor, "group step"]
    target: Float[Tensor, "group member step channel height width"]


def state_errors(policy: Policy, experience: StateExperience) -> Float[Tensor, "group member step"]:
    """`‖ε_θ(x_T, c, T) − ε‖²` at each state, in one evaluation.

    Args:
        policy: the model; gradients flow into its denoiser if they are enabled.
        experience: states, their timesteps, mask, targets and prompts; only states that exist are evaluated.

    Returns:
        Mean squared error per element, 0 where a state does not exist; on the policy's device.
    """
    exists = experience.mask[:, None, :].expand(experience.x_t.shape[:3])
    group, member, step = exists.nonzero(as_tuple=True)
    prediction = policy.predict(
        experience.x_t[exists].to(policy.device),
        experience.timesteps[group, step].to(policy.device),
        experience.condition.index(experience.group_prompt[group]).to(policy.device),
    )
    error = losses.mean_squared_error(prediction.eps, experience.target[exists].to(policy.device))
    places = tuple(index.to(policy.device) for index in (group, member, step))
    return torch.zeros(exists.shape, device=policy.device, dtype=error.dtype).index_put(places, error)


def regression(policy: Policy, experience: StateExperience, snr_gamma: float) -> Loss:
    """`ω_t ‖ε_θ(x_t, c, t) − ε‖²` over groups of one member and one state.

    Args:
        policy: the model in training.
        experience: at least one group.
        snr_gamma: γ of `ω_t = min(SNR, γ) / SNR`; 0: all weigh the same.

    Returns:
        Mean over groups, with its metrics; `error` is unweighted.
    """
    policy = policy_of(policy, experience.x_t)
    error = state_errors(policy, experience)[:, 0, 0]
    omega = losses.min_snr_weights(policy.snr(experience.timesteps[:, 0]), snr_gamma).to(error)
    value = (omega * error).mean()
    return Loss(value, {"loss": float(value.detach()), "error": float(error.detach().mean())})


def check_images(batch: Batch, seeds: Seeds, count: int) -> None:
    """Refuse examples that do not match their slots, or have another number of images.

    Args:
        batch: the task's examples.
        seeds: one slot an example.
        count: images the method needs of each: 1, or 2 for pairs.

    Raises:
        ValueError: if they differ.
    """
    check_batch(batch, seeds)
    if batch.images.shape[1] != count:
        needed = {1: "one image of each prompt", 2: "a preferred and another image of each prompt"}[count]
        raise ValueError(f"the examples have {batch.images.shape[1]} images each; pass a source with {needed}")


def policy_of(policy: Policy, x: Float[Tensor, "*batch channel height width"]) -> Policy:
    """The policy that goes with given latents: those of an aspect bucket have a shape of their own.

    Args:
        policy: the model.
        x: latents of images, or noisy ones.

    Returns:
        The same model for that shape; the policy itself where it has it.
    """
    return policy.shaped(x.shape[-2], x.shape[-1])


def training_timesteps(policy: Policy) -> int:
    """How many timesteps the model was trained at.

    Args:
        policy: the model.

    Returns:
        T; timesteps run from 0 to T − 1.
    """
    return len(policy.schedule)


def drop_prompts(policy: Policy, condition: Condition, seeds: Seeds, proportion: float) -> Condition:
    """Replace some prompts by the empty one, so that guidance keeps something to contrast a prompt with.

    Args:
        policy: knows the empty prompt's embedding.
        condition: embeddings, one row a slot.
        seeds: counters of the draws.
        proportion: probability of each prompt to be replaced (arXiv 2207.12598, p_uncond).

    Returns:
        A condition of as many rows.
    """
    draws = [generator(seeds.run_seed, "empty prompt", seeds.update, slot).random() for slot in seeds.slots]
    rows = [len(draws) if draw < proportion else b for b, draw in enumerate(draws)]
    return Condition.cat([condition, policy.uncondition(1)]).index(rows)


def told_sizes(condition: Condition, batch: Batch) -> Condition:
    """Tell a denoiser that knows sizes how large each image was, and what was cut off.

    Args:
        condition: embeddings, one row an example.
        batch: the examples; without size ids nothing changes, nor for a denoiser that is told none.

    Returns:
        A condition of as many rows.
    """
    if condition.time_ids is None or batch.sizes is None:
        return condition
    return replace(condition, time_ids=torch.from_numpy(batch.sizes).to(condition.time_ids))


def group_noise(
    shape: Sequence[int], seeds: Seeds, timesteps: int, device: torch.device
) -> Float[Tensor, "group channel height width"]:
    """A noise for each timestep of each example.

    Args:
        shape: `(C, H, W)` of a latent.
        seeds: counters of the draws.
        timesteps: K, timesteps an example.
        device: where the noises go.

    Returns:
        Standard normal, the K noises of an example in a row.
    """
    draws = [
        noise(tuple(shape), seeds.run_seed, "noise", seeds.update, slot, k)
        for slot in seeds.slots
        for k in range(timesteps)
    ]
    return torch.stack(draws).to(device)
