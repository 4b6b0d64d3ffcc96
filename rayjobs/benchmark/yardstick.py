"""The yardstick: an update in the order in which the method's public code makes it (`docs/method.md`, differences).

Written for the benchmark from that description, to have something to be faster than; nothing trains with it. One
prompt an update. Every policy evaluation and every VAE decode of all n·m states keeps its graph, the backward pass runs
through all branches though only two of them have a gradient, and the reference is evaluated by itself afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sharpening.losses import mean_squared_error
from sharpening.policies.base import Condition
from sharpening.policies.sdxl import SDXLPolicy
from sharpening.rewards.base import ScoreFn
from sharpening.sampling import sample
from sharpening.seeds import generator, noise


@dataclass(frozen=True)
class YardstickOptions:
    """What the public code is run with.

    Attributes:
        branches: n, branches of the prompt.
        branch_steps: m, states of a branch.
        rollout_steps: sampler steps of a generated latent.
        beta: β; errors are per-element means.
        learning_rate: AdamW's learning rate.
        max_grad_norm: gradients are clipped to this norm.
    """

    branches: int = 3
    branch_steps: int = 3
    rollout_steps: int = 25
    beta: float = 2500.0
    learning_rate: float = 1e-6
    max_grad_norm: float = 1.0


@dataclass
class Walk:
    """What the branches of one prompt leave behind, with their graphs.

    Attributes:
        errors: the policy's error at each state, regressed to the branch's first noise.
        rewards: reward of each state's decoded clean prediction.
        pixels: the decoded images of each step `[n, 3, H, W]`; holding them holds the VAE's graph.
    """

    errors: Float[Tensor, "branch step"]
    rewards: Float[Tensor, "branch step"]
    pixels: list[Tensor]


def preference_loss(
    errors: Float[Tensor, "branch step"],
    reference_error: Float[Tensor, " branch"],
    rewards: Float[Tensor, "branch step"],
    beta: float,
) -> Float[Tensor, ""]:
    """The public code's loss: `−log σ(β Δ) + (S_w − S_l)`, the gap outside the sigmoid and without gradient.

    Winner and loser are argmax and argmin over the whole batch, which is right for one prompt only.

    Args:
        errors: the policy's error at each state; a branch's mean over its states counts.
        reference_error: the reference's error at each branch's first state.
        rewards: reward of each state; a branch's sum over its states decides (Eq. 8).
        beta: β.

    Returns:
        The loss.
    """
    path_reward = rewards.sum(dim=1).flatten()
    winner, loser = int(path_reward.argmax()), int(path_reward.argmin())
    gain = reference_error - errors.mean(dim=1)  # log(p_θ / p_ref) of each branch
    gap = (path_reward[winner] - path_reward[loser]).detach()
    return -F.logsigmoid(beta * (gain[winner] - gain[loser])) + gap


class Yardstick:
    """Makes updates in the public code's order.

    Attributes:
        options: what it runs with.
        policy: the model; its denoiser is trained.
        reference: the model it started from.
    """

    def __init__(
        self, policy: SDXLPolicy, reference: SDXLPolicy, score: ScoreFn, options: YardstickOptions | None = None
    ) -> None:
        """Take a model.

        Args:
            policy: the model; its denoiser is changed in place.
            reference: the model it started from.
            score: the reward.
            options: None means the defaults.
        """
        self.options, self.policy, self.reference = options or YardstickOptions(), policy, reference
        self._score = score
        self._optimizer = torch.optim.AdamW(
            policy.denoiser.requires_grad_(True).parameters(),
            lr=self.options.learning_rate, betas=(0.0, 0.99), weight_decay=0.0,
        )  # fmt: skip

    def update(self, prompt: str, run_seed: int, update: int) -> float:
        """Generate, branch, learn: one optimiser step on one prompt.

        Args:
            prompt: the prompt.
            run_seed: counter of the random numbers.
            update: counter of the random numbers.

        Returns:
            The loss.

        Raises:
            ArithmeticError: if the loss is not finite.
        """
        self._optimizer.zero_grad(set_to_none=True)
        # The walk stays alive until the backward pass is over, and with it the graph of every decode.
        loss, walk = self.loss(prompt, run_seed, update)
        value = loss.item()
        if not math.isfinite(value):
            raise ArithmeticError(f"the yardstick's loss of update {update} is {value}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.denoiser.parameters(), self.options.max_grad_norm)
        self._optimizer.step()
        del walk
        return value

    def loss(self, prompt: str, run_seed: int, update: int) -> tuple[Float[Tensor, ""], Walk]:
        """One prompt's loss with its whole graph.

        Args:
            prompt: the prompt.
            run_seed: counter of the random numbers.
            update: counter of the random numbers.

        Returns:
            The loss, and what the branches left behind.
        """
        n, steps = self.options.branches, self.options.rollout_steps
        condition = self.policy.encode([prompt]).repeat_interleave(n)
        shape = self.policy.latent_shape
        eps = torch.stack([noise(shape, run_seed, "yardstick", update, k) for k in range(n)]).to(self.policy.device)
        x0 = sample(self.policy, condition, eps, steps)  # each branch is noised again with its own first noise
        place = int(generator(run_seed, "yardstick timestep", update).integers(steps))
        walk = self.walk(condition, prompt, x0, eps, place)
        t = self._rows(place)
        with torch.no_grad():
            first = self.reference.predict(self.policy.add_noise(x0, eps, t), t, condition)
            reference_error = mean_squared_error(first.eps, eps)  # at the first timestep alone
        return preference_loss(walk.errors, reference_error, walk.rewards, self.options.beta), walk

    def walk(self, condition: Condition, prompt: str, x0: Tensor, eps: Tensor, place: int) -> Walk:
        """Walk all branches down the grid, with gradient.

        Args:
            condition: one row a branch.
            prompt: the prompt.
            x0: clean latents `[n, C, H, W]`.
            eps: the branches' noise `[n, C, H, W]`.
            place: place of the first state in the sampler's grid.

        Returns:
            The states' errors, rewards and images; `min(m, steps left)` states a branch.
        """
        options = self.options
        x = self.policy.add_noise(x0, eps, self._rows(place))
        errors, rewards, pixels = [], [], []
        for i in range(place, min(place + options.branch_steps, options.rollout_steps)):
            t = self._rows(i)
            prediction = self.policy.predict(x, t, condition)
            errors.append(mean_squared_error(prediction.eps, eps))
            pixels.append(self._decode(prediction.x0))
            rewards.append(self._reward(pixels[-1], prompt))
            x = self.policy.step(x, t, self.policy.previous(t, options.rollout_steps), prediction)
        return Walk(torch.stack(errors, dim=1), torch.stack(rewards, dim=1), pixels)

    def _rows(self, place: int) -> Tensor:
        """The grid's timestep at a place, for every branch."""
        return self.policy.timesteps(self.options.rollout_steps)[place].repeat(self.options.branches)

    def _decode(self, latents: Tensor) -> Tensor:
        """Images in [−1, 1], with the VAE's graph: the policy's own `decode` keeps none."""
        vae = self.policy.vae
        latents = latents / vae.config.scaling_factor
        mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
            latents = latents * std + mean
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0]

    def _reward(self, pixels: Tensor, prompt: str) -> Tensor:
        scaled = (pixels.detach().float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        scores = self._score((scaled * 255).round().astype(np.uint8), [prompt] * len(pixels))
        return torch.from_numpy(np.asarray(scores.values, dtype=np.float32)).to(self.policy.device)
