"""The arithmetic of docs/recipes.md: memory and time of whole runs, from the published architectures.

`python -m tests.recipes` prints the tables. Nothing is downloaded and no weight is allocated: operations and bytes are
counted on the meta device, as in `tests.full_size`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.full_size import BF16, MODELS, activations, empty, on_meta, parameters, t5_xxl, vae

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT = tuple(f"attn.{name}" for name in (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
FORWARD_SHARE, DECODE_SHARE = 0.4, 0.3
"""Assumed shares of a card's bf16 peak, as in cluster/capacity/."""
CONTEXT = 0.6e9  # bytes that CUDA and its libraries take in each process; assumed


@dataclass(frozen=True)
class Card:
    """A GPU: bytes of memory, and bf16 operations a second with float32 sums, without sparsity, by its data sheet."""

    name: str
    memory: float
    peak: float


RTX_4090 = Card("RTX 4090", 24 * 2**30, 165.2e12)
L40S = Card("L40S", 48 * 2**30, 362.05e12)
H100 = Card("H100 SXM", 80e9, 989.4e12)


@lru_cache
def denoiser(name: str) -> nn.Module:
    """A model's denoiser, without weights."""
    return on_meta(MODELS[name].denoiser)


@lru_cache
def frozen_parameters(name: str) -> int:
    """Parameters of what stands beside the denoiser."""
    return sum(parameters(build) for build in MODELS[name].frozen)


def adapter_parameters(name: str, rank: int, targets: tuple[str, ...]) -> int:
    """Weights of LoRA: rank · (inputs + outputs) for each linear layer with one of the names."""
    layers = denoiser(name).named_modules()
    ends = tuple(f".{target}" for target in targets)
    found = [layer for path, layer in layers if path.endswith(ends) and isinstance(layer, nn.Linear)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in found)


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of a forward pass, a multiplication and an addition being two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class _Live(TorchDispatchMode):
    """Bytes of the storages alive at a time, parameters left out."""

    def __init__(self) -> None:
        super().__init__()
        self._holders: dict[int, int] = {}
        self._now, self.peak = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        output = func(*args, **(kwargs or {}))
        for x in tree_leaves(output):
            if isinstance(x, Tensor):
                key, size = x.untyped_storage()._cdata, x.untyped_storage().nbytes()
                if key in known and key not in self._holders:
                    continue  # a view of a parameter or of an input
                if key not in self._holders:
                    self._holders[key] = 0
                    self._now += size
                    self.peak = max(self.peak, self._now)
                self._holders[key] += 1
                weakref.finalize(x, self._release, key, size)
        return output

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._now -= size


def peak_live(call: Callable[[], Any]) -> int:
    """Bytes that a forward pass without gradient holds at its fullest moment, beside weights and inputs."""
    fused = lambda query, key, value, *_, **__: torch.empty_like(query)  # noqa: E731
    with torch.no_grad(), patch("torch.nn.functional.scaled_dot_product_attention", fused), _Live() as live:
        call()
    return live.peak


@lru_cache
def kept(name: str) -> int:
    """Bytes that a forward pass of one image keeps for the backward pass, with gradient checkpointing."""
    return activations(MODELS[name], MODELS[name].pixels, checkpointing=True)


@lru_cache
def evaluation(name: str) -> tuple[float, int]:
    """Operations of one denoiser evaluation of one image, and bytes it holds."""
    inputs = MODELS[name].inputs(MODELS[name].pixels)
    return operations(lambda: denoiser(name)(**inputs)), peak_live(lambda: denoiser(name)(**inputs))


@lru_cache
def decoding(channels: int, pixels: int = 1024) -> tuple[float, int]:
    """Operations of decoding one image, and bytes it holds."""
    decoder = on_meta(lambda: vae(channels))
    latent = empty(1, channels, pixels // 8, pixels // 8)
    return operations(lambda: decoder.decode(latent)), peak_live(lambda: decoder.decode(latent))


@dataclass(frozen=True)
class Recipe:
    """A run of RLHF sharpening at the model's own resolution, in bf16 with gradient checkpointing.

    Attributes:
        model: name in `tests.full_size.MODELS`.
        channels: of the VAE's latents.
        card: what it runs on.
        rank: LoRA's; 0 trains all weights.
        targets: layers with an adapter.
        reward: bytes of the reward's float32 weights, as docs/rewards.md has them.
        actors: rollout actors, each on a card unless `shared`.
        learners: learner ranks, under ZeRO 1.
        replicas: of the reward.
        shared: whether all processes share one card.
        prompts: an update.
        batch: prompts of a rollout task.
        steps: of the sampler, unguided.
        branches: n.
        timesteps: K; branches have m = 1 state.
        overlap: whether rollouts and learning overlap (`--staleness 1`).
        leave_out: bytes of text encoders that the folder does without.
        updates: in the whole run.
        judged: prompts of the evaluation before and after, unguided and under guidance.
        looked: held-out prompts of a look, unguided.
        every: updates between looks.
    """

    model: str
    channels: int
    card: Card
    rank: int
    targets: tuple[str, ...]
    reward: float
    actors: int = 1
    learners: int = 1
    replicas: int = 1
    shared: bool = True
    prompts: int = 8
    batch: int = 1
    steps: int = 30
    branches: int = 3
    timesteps: int = 4
    overlap: bool = False
    leave_out: float = 0.0
    updates: int = 100
    judged: int = 60
    looked: int = 12
    every: int = 20


def memory(recipe: Recipe) -> dict[str, float]:
    """Bytes by process and purpose."""
    weights = sum(p.numel() for p in denoiser(recipe.model).parameters())
    frozen = BF16 * frozen_parameters(recipe.model) - recipe.leave_out
    adapter = adapter_parameters(recipe.model, recipe.rank, recipe.targets)
    base = BF16 * weights if recipe.rank else 0
    # ZeRO 1 shares out master weights and both moments.
    trained = (4 + 12 / recipe.learners) * (adapter if recipe.rank else weights)
    pair = 2 * kept(recipe.model)  # winner and loser
    copies = 1 if recipe.rank else 2  # the reference is the model with its adapters off, or a second one
    rows = recipe.batch * recipe.branches * recipe.timesteps  # of the largest batch; images are decoded one by one
    working = max(rows * evaluation(recipe.model)[1], decoding(recipe.channels)[1])
    found = {
        "learner: denoiser": base, "learner: trained": trained, "learner: frozen": frozen, "learner: activations": pair,
        "learner: context": CONTEXT, "actor: denoiser": copies * BF16 * weights + BF16 * adapter,
        "actor: frozen": frozen, "actor: working": working, "actor: context": CONTEXT, "reward: weights": recipe.reward,
        "reward: context": CONTEXT,
    }  # fmt: skip
    return {name: float(size) for name, size in found.items() if size}


def seconds(recipe: Recipe) -> dict[str, float]:
    """Seconds of one update by stage; what rollout actors and learners do is divided among them."""
    n, k, prompts = recipe.branches, recipe.timesteps, recipe.prompts
    one = evaluation(recipe.model)[0] / (FORWARD_SHARE * recipe.card.peak)
    decode = decoding(recipe.channels)[0] / (DECODE_SHARE * recipe.card.peak)
    passes = 3 if recipe.rank else 4  # forward, forward again, backward: of the inputs alone where weights are frozen
    return {
        "generate": prompts * n * recipe.steps * one / recipe.actors,
        "branch": prompts * n * k * one / recipe.actors,
        "decode": prompts * n * k * decode / recipe.actors,
        "reference": prompts * k * 2 * one / recipe.actors,
        "learn": prompts * k * 2 * passes * one / recipe.learners,
    }


def update_seconds(recipe: Recipe) -> float:
    """Seconds of an update: both sides one after the other, or the slower one where they overlap."""
    stages = seconds(recipe)
    rollout = sum(spent for name, spent in stages.items() if name != "learn")
    return max(rollout, stages["learn"]) if recipe.overlap else rollout + stages["learn"]


def run_seconds(recipe: Recipe) -> float:
    """Seconds of a whole run: its updates, the evaluation before and after, and the looks at held-out prompts."""
    one = evaluation(recipe.model)[0] / (FORWARD_SHARE * recipe.card.peak)
    decode = decoding(recipe.channels)[0] / (DECODE_SHARE * recipe.card.peak)
    looked = recipe.looked * (recipe.updates // recipe.every)
    evaluations = 2 * recipe.judged * 3 * recipe.steps + looked * recipe.steps  # guidance makes two of each
    drawing = evaluations * one + (2 * recipe.judged * 2 + looked) * decode
    return recipe.updates * update_seconds(recipe) + drawing / recipe.actors


T5 = float(BF16 * 4_762_310_656)
RECIPES = {
    "SDXL LoRA": Recipe("SDXL base", 4, RTX_4090, 16, ATTENTION, 1.8e9),
    "SDXL full": Recipe(
        "SDXL base", 4, H100, 0, (), 3.9e9, actors=5, learners=2, shared=False, prompts=40, batch=2, overlap=True,
        updates=500, every=50,
    ),
    "SD3.5 LoRA": Recipe("SD 3.5 medium", 16, L40S, 16, JOINT, 1.8e9),
    "SD3.5 LoRA, no T5": Recipe("SD 3.5 medium", 16, RTX_4090, 16, JOINT, 1.8e9, leave_out=T5),
}  # fmt: skip


def lines(name: str) -> list[str]:
    """A recipe's two tables, as docs/recipes.md has them."""
    recipe = RECIPES[name]
    sizes = memory(recipe)
    table = ["| process | what | GB |", "|---|---|--:|"]
    table += [f"| {' | '.join(what.split(': '))} | {size / 1e9:.1f} |" for what, size in sizes.items()]
    groups = {kind: sum(v for k, v in sizes.items() if k.startswith(kind)) for kind in ("learner", "actor", "reward")}
    if recipe.shared:
        table.append(f"| all | on one card of {recipe.card.memory / 1e9:.1f} GB | {sum(groups.values()) / 1e9:.1f} |")
    else:
        table += [
            f"| {kind} | its card, of {recipe.card.memory / 1e9:.1f} GB | {v / 1e9:.1f} |" for kind, v in groups.items()
        ]
    table += ["", "| stage of an update | s |", "|---|--:|"]
    table += [f"| {stage} | {spent:.1f} |" for stage, spent in seconds(recipe).items()]
    run = f"| {recipe.updates} updates with evaluation and looks | {run_seconds(recipe) / 3600:.1f} h |"
    return [*table, f"| update | {update_seconds(recipe):.1f} |", run]


if __name__ == "__main__":
    print("T5", parameters(t5_xxl), T5 / BF16)
    for channels in (4, 16):
        found = decoding(channels)
        print(f"decoding, {channels} channels: {found[0] / 1e12:.3f} TFLOP, {found[1] / 1e9:.2f} GB")
    for name, recipe in RECIPES.items():
        found, adapter = evaluation(recipe.model), adapter_parameters(recipe.model, recipe.rank, recipe.targets)
        print(f"\n{name}: {found[0] / 1e12:.3f} TFLOP, {found[1] / 1e9:.2f} GB, adapters {adapter:,}")
        print("\n".join(lines(name)))
