"""The world of scalars as a policy: its denoiser is exact for the base laws, and learns what it adds to that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from sharpening.mixture.law import World
from sharpening.policies.base import Condition
from sharpening.policies.scheduled import ScheduledPolicy
from sharpening.rewards.base import Scores
from sharpening.schedule import Schedule

LIMIT = 8.0
"""Images show x from −8 to 8; what lies beyond is cut off."""
SIDE = 8
"""Pixels of an image's side."""
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
"""Cosine noise levels, whose noisy end has no signal left. The velocity is of order 1 at every level; an error of ε
would be blown up at the noisy end, and one of x_0 at the clean end."""


class MixtureDenoiser(nn.Module):
    """Velocity `v = α_t ε − σ_t x_0`: the exact one of the world, plus a small network that starts at zero.

    Under `x_t = α x_0 + σ ε` component k of a mixture gives `x_t ~ N(α μ_k, α² s_k² + σ²)`, hence its posterior
    probability ρ_k, and `E[x_0 | x_t, k] = μ_k + α s_k² (x_t − α μ_k) / (α² s_k² + σ²)`. Their sum under ρ is
    `E[x_0 | x_t]`, the optimal denoiser.
    """

    table: Tensor
    means: Tensor
    variances: Tensor
    alphas: Tensor
    sigmas: Tensor

    def __init__(self, world: World, schedule: Schedule, width: int = 64) -> None:
        """Make the denoiser of a world.

        Args:
            world: the base laws.
            schedule: the noise levels.
            width: units of each of the network's two hidden layers.
        """
        super().__init__()
        laws = list(world.laws.values())
        prompts, count = len(laws), len(laws[0].weights)
        table = torch.zeros(prompts, prompts, count, dtype=torch.float64)  # each prompt has components of its own
        for row, law in enumerate(laws):
            table[row, row] = torch.from_numpy(law.weights)
        t = torch.arange(len(schedule.alphas_cumprod))
        for name, value in {
            "table": table.flatten(1),
            "means": torch.from_numpy(np.concatenate([law.means for law in laws])),
            "variances": torch.from_numpy(np.concatenate([law.deviations**2 for law in laws])),
            "alphas": schedule.alpha(t),
            "sigmas": schedule.sigma(t),
        }.items():
            self.register_buffer(name, value.float(), persistent=False)
        first, second, last = nn.Linear(3 + prompts, width), nn.Linear(width, width), nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(0)  # no run depends on torch's global one
        for layer in (first, second):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.uniform_(layer.bias, -1, 1, generator=generator)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)

    def forward(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        pooled: Float[Tensor, "batch prompt"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Velocity at (x_t, t).

        Args:
            x_t: noisy scalars.
            t: their timesteps.
            pooled: a prompt's row of the identity, or the mean of those rows for no prompt.

        Returns:
            v.
        """
        x, alpha, sigma = x_t.view(-1, 1), self.alphas[t, None], self.sigmas[t, None]
        variance = alpha**2 * self.variances + sigma**2
        offset = x - alpha * self.means
        rho = torch.softmax((pooled @ self.table).log() - 0.5 * variance.log() - 0.5 * offset**2 / variance, dim=1)
        x0 = (rho * (self.means + alpha * self.variances / variance * offset)).sum(1, keepdim=True)
        v = (alpha * x - x0) / sigma
        return (v + self.correction(torch.cat([x, alpha, sigma, pooled], dim=1))).view_as(x_t)


class MixturePolicy(ScheduledPolicy):
    """Adapter of a world of scalars; latents are `(1, 1, 1)`, images their brightness.

    Attributes:
        denoiser: the trained module.
        schedule: noise levels and grids.
        latent_shape: `(1, 1, 1)`.
        nfe: denoiser evaluations so far, calls × scalars.
        device: the CPU.

    Example:
        ```python
        policy = MixturePolicy(default_world())
        x0 = sample(policy, policy.encode(["left"] * 100), torch.randn(100, 1, 1, 1), steps=20)
        ```
    """

    def __init__(self, world: World) -> None:
        """Make the base policy of a world, whose samples follow its laws.

        Args:
            world: the laws.
        """
        super().__init__()
        self.world = world
        self.schedule = Schedule.from_config(SCHEDULER)
        self.denoiser: nn.Module = MixtureDenoiser(world, self.schedule)
        self.latent_shape: tuple[int, int, int] = (1, 1, 1)
        self.device = torch.device("cpu")

    # -- prompts ---------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Rows of the identity matrix, one column a prompt of the world.

        Args:
            prompts: B prompts of the world.

        Returns:
            Their condition, B rows.

        Raises:
            ValueError: if a prompt is not one of the world's.
        """
        unknown = sorted(set(prompts) - set(self.world.prompts))
        if unknown:
            raise ValueError(f"the world has no prompt '{unknown[0]}'; pass one of {', '.join(self.world.prompts)}")
        return self._condition(torch.eye(len(self.world.prompts))[[self.world.prompts.index(p) for p in prompts]])

    def uncondition(self, batch: int) -> Condition:
        """No prompt: the even mixture of all prompts' laws.

        Args:
            batch: number of rows.

        Returns:
            A condition of that many rows.
        """
        prompts = len(self.world.prompts)
        return self._condition(torch.full((batch, prompts), 1 / prompts))

    @staticmethod
    def _condition(pooled: Tensor) -> Condition:
        return Condition(pooled[:, None, :], pooled)

    # -- one step --------------------------------------------------------------------------------------------------

    def denoise(
        self,
        x_t: Float[Tensor, "batch channel height width"],
        time: Tensor,
        condition: Condition,
        guidance_scale: float,
    ) -> Float[Tensor, "batch channel height width"]:
        """One call of the denoiser.

        Args:
            x_t: noisy scalars.
            time: their timesteps.
            condition: one row a scalar.
            guidance_scale: the denoiser is not told it.

        Returns:
            Velocity.
        """
        del guidance_scale
        return self.denoiser(x_t, time, condition.pooled)

    # -- images ----------------------------------------------------------------------------------------------------

    def pixels(
        self, latents: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch 3 pixel_height pixel_width"]:
        """A uniform grey of brightness `(x + 8) / 16`, cut off at black and white.

        Args:
            latents: clean scalars.

        Returns:
            Images in [0, 1], with a graph where gradients are enabled.
        """
        return ((latents + LIMIT) / (2 * LIMIT)).clamp(0, 1).expand(-1, 3, SIDE, SIDE)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channel height width"]) -> np.ndarray:
        """Images in 8 bit, dithered: a grey between two levels is the upper one in as large a share of the values.

        Rounding alone would leave x in steps of 16/255 = 0.06. Over the 192 values of an image the mean brightness
        keeps it to ±16/(2 · 255 · 192), below 2e-4.

        Args:
            latents: clean scalars.

        Returns:
            uint8 `[B, 8, 8, 3]`.
        """
        level = 255 * self.pixels(latents).double().permute(0, 2, 3, 1).numpy()
        size = 3 * SIDE * SIDE
        threshold = ((np.arange(size) + 0.5) / size).reshape(SIDE, SIDE, 3)
        return np.floor(level + threshold).astype(np.uint8)

    def encode_images(self, images: np.ndarray) -> Float[Tensor, "batch channel height width"]:
        """Clean scalars of images.

        Args:
            images: uint8 `[B, H, W, 3]`.

        Returns:
            Scalars `[B, 1, 1, 1]`.
        """
        return torch.from_numpy(scalars(images)).float().view(-1, 1, 1, 1)

    # -- weights ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network's weights; there is no diffusers pipeline of scalars.

        Args:
            folder: where to; made if it is not there.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.trainable_state(), Path(folder) / "denoiser.safetensors")


def scalars(images: np.ndarray) -> Float[np.ndarray, " image"]:
    """The scalars that images show, from their mean brightness.

    Args:
        images: uint8 `[N, H, W, 3]`.

    Returns:
        float64.
    """
    return images.mean(axis=(1, 2, 3), dtype=np.float64) / 255 * (2 * LIMIT) - LIMIT


def linear_reward(images: np.ndarray, prompts: Sequence[str]) -> Scores:
    """The reward `r(x) = x`, read off the image; the same for all prompts.

    Args:
        images: uint8 `[N, H, W, 3]`.
        prompts: one an image.

    Returns:
        Their scores.
    """
    del prompts
    return Scores(scalars(images).astype(np.float32))
