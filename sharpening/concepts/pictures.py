"""The figures of docs/concepts.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sharpening import losses
from sharpening.concepts.walk import Noising, Walk
from sharpening.evaluation.comparison.plot_style import finish_axes, new_figure, png
from sharpening.evaluation.plots import BLUE, GREY, LIGHT, PARTS, RED
from sharpening.path_integral import branch_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN = PARTS[0]


def _show(axes: Axes, image: np.ndarray, note: str = "", frame: str | None = None) -> None:
    """An image without ticks, a note beneath it and perhaps a frame."""
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(note, fontsize=8, labelpad=2)
    for spine in axes.spines.values():
        spine.set_color(frame or LIGHT)
        spine.set_linewidth(2.5 if frame else 0.6)


def noising(found: Noising, prompt: str) -> bytes:
    """States of one image over the grid, and the clean image that the model predicts at each.

    Args:
        found: the states.
        prompt: the prompt.

    Returns:
        A PNG.
    """
    figure = new_figure(1.05 * len(found.timesteps), 3.0)
    figure.suptitle(f"“{prompt}”", fontsize=10)
    rows = figure.subplots(2, len(found.timesteps))
    for place, t in enumerate(found.timesteps):
        rows[0, place].set_title(f"t = {t}", fontsize=8)
        _show(rows[0, place], found.states[place])
        _show(rows[1, place], found.predicted[place], f"R = {found.rewards[place]:.0f}")
    rows[0, 0].set_ylabel(r"$x_t$")
    rows[1, 0].set_ylabel(r"$\hat{x}_0(x_t, t)$")
    return png(figure)


def branches(found: Walk, prompt: str) -> bytes:
    """A prompt's branches, a row each: the image it starts from, its states' predictions, its path reward.

    Args:
        found: the walk.
        prompt: the prompt.

    Returns:
        A PNG.
    """
    times, count, states = found.rewards.shape
    figure = new_figure(1.15 * (1 + times * states), 1.32 * count + 0.5)
    figure.suptitle(f"“{prompt}”", fontsize=10)
    grid = figure.subplots(count, 1 + times * states)
    for k in range(count):
        role = {found.winner: ("winner", GREEN), found.loser: ("loser", RED)}.get(k)
        name = f"branch {k + 1}" + (f"\n{role[0]}" if role else "")
        _show(grid[k, 0], found.images[k], f"S = {found.paths[k]:.1f}", role[1] if role else None)
        grid[k, 0].set_ylabel(name, color=role[1] if role else "black", fontsize=9)
        for place in range(times * states):
            i, s = divmod(place, states)
            axes = grid[k, 1 + place]
            if found.exists[i, s]:
                _show(axes, found.predicted[i, k, s], f"R = {found.rewards[i, k, s]:.0f}")
            else:
                axes.axis("off")
            if k == 0 and found.exists[i, s]:
                axes.set_title(f"t = {found.timesteps[i, s]}", fontsize=8)
    grid[0, 0].set_title(r"$x_0$", fontsize=8)
    return png(figure)


def temperature(found: Walk) -> bytes:
    """How often each branch is drawn as the winner, by temperature.

    Args:
        found: the walk, whose path rewards are taken.

    Returns:
        A PNG.
    """
    figure = new_figure(6.0, 3.2)
    axes = figure.subplots()
    places = np.geomspace(0.1, 100, 121)
    path = torch.from_numpy(found.paths)[None]
    weights = np.stack([branch_weights(path, float(value))[0].numpy() for value in places])
    for k in np.argsort(-found.paths):
        colour = {found.winner: GREEN, found.loser: RED}.get(int(k), GREY)
        axes.plot(places, weights[:, k], color=colour, label=f"branch {k + 1}, S = {found.paths[k]:.1f}")
    axes.axhline(1 / len(found.paths), color=LIGHT, linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel("temperature λ, in units of the reward")
    axes.set_ylabel("weight of a branch")
    axes.legend(fontsize=8, frameon=False)
    finish_axes(axes, "From argmax (λ → 0) to uniform (λ → ∞)")
    return png(figure)


def loss_curves(beta: float, scale: float, gaps: Sequence[float]) -> bytes:
    """Eq. 11 and what pulls: the loss of a pair and its slope, by how much more likely the winner has become.

    Args:
        beta: β.
        scale: η, per unit of reward.
        gaps: gaps in path reward between winner and loser.

    Returns:
        A PNG.
    """
    figure = new_figure(8.5, 3.2)
    left, right = figure.subplots(1, 2)
    for gap, colour in zip(gaps, (GREY, BLUE, RED), strict=False):
        delta = torch.linspace(-0.02, 0.03, 201, requires_grad=True)
        zero, won = torch.zeros_like(delta), torch.full_like(delta, gap)
        loss = losses.dpo_margin(delta, zero, won, zero, beta, scale)
        (slope,) = torch.autograd.grad(loss.sum(), delta)
        label = f"gap {gap:g}" + (" (plain DPO)" if gap == 0 else "")
        left.plot(delta.detach(), loss.detach(), color=colour, label=label)
        right.plot(delta.detach(), -slope, color=colour, label=label)
    for axes, title in ((left, "Loss of a pair"), (right, "How strongly it pulls, −∂L/∂Δ")):
        axes.axvline(0, color=LIGHT, linewidth=1, zorder=0)
        axes.set_xlabel("Δ: log ratio of the winner less that of the loser")
        finish_axes(axes, title)
    left.legend(fontsize=8, frameon=False, title=f"β = {beta:g}, η = {scale:g}", title_fontsize=8)
    return png(figure)


def guidance(images: np.ndarray, rewards: np.ndarray, prompts: Sequence[str], scales: Sequence[float]) -> bytes:
    """The same noise under several guidance scales, a row a prompt.

    Args:
        images: uint8 `[prompts, scales, H, W, 3]`.
        rewards: of the images `[prompts, scales]`.
        prompts: the prompts.
        scales: classifier-free guidance scales.

    Returns:
        A PNG.
    """
    figure = new_figure(1.5 * len(scales) + 1.6, 1.62 * len(prompts) + 0.2)
    grid = figure.subplots(len(prompts), len(scales), squeeze=False)
    for row, prompt in enumerate(prompts):
        for column, scale in enumerate(scales):
            axes = grid[row, column]
            _show(axes, images[row, column], f"R = {rewards[row, column]:.0f}")
            if row == 0:
                axes.set_title(f"w = {scale:g}", fontsize=9)
        grid[row, 0].set_ylabel(prompt.replace(" and ", "\nand ").replace(" on ", "\non "), fontsize=8, rotation=0,
                                ha="right", va="center")  # fmt: skip
    return png(figure)
