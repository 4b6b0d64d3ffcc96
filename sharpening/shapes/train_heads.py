"""Trains the embedded world's reward heads: `python -m sharpening.shapes.train heads --output_dir DIR`.

Bradley-Terry heads on the frozen embedded CLIP (`reward_heads`), by pairwise cross-entropy on ranked images
(`ranked_images`): renders of known scenes, never the verifiers' word. Only training captions and scenes without
held-out combinations are seen. The heads are measured on the base model's samples too, which the verifiers rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from sharpening.policies import load_policy
from sharpening.policies.base import Policy
from sharpening.rewards.embedded import FeatureReader
from sharpening.shapes.assets import clip_folder, pipeline_folder
from sharpening.shapes.benchmark import excluded_prompts, validation_benchmark
from sharpening.shapes.preference_training import Preferences, accuracy, all_logits, fit, read_preferences
from sharpening.shapes.ranked_images import RankedImages, ranked_degradations, ranked_renders, ranked_samples
from sharpening.shapes.reward_heads import HEADS, IMAGE_ONLY, RewardHead, clip_digest, save_heads
from sharpening.shapes.scene import held_out

COMPOSITIONAL = ("attribute", "spatial", "non_spatial")
TRAINING_PAIRS = {"attribute": 6000, "spatial": 9000, "non_spatial": 6000, "background": 1500, "degraded": 4000}
"""Pairs of pictures of each source; places are the hardest to learn."""
STEPS = {"aesthetic": 5000, "preference": 5000, "attribute": 1000, "spatial": 5000, "non_spatial": 5000}
"""Optimiser steps; attributes are learnt early, and more steps cost accuracy on the base model's samples."""
TEST_PAIRS = 400

Sets = dict[str, Preferences]
"""Preferences by source: a respect, "degraded", or "samples HEAD"."""


class Sources:
    """Draws ranked images and has the CLIP read them."""

    def __init__(self, seed: int) -> None:
        """Load the shipped CLIP, VAE and base model.

        Args:
            seed: seed of scenes, captions, degradations and samples.
        """
        self._seed = seed
        self._excluded = excluded_prompts()
        self._vae = AutoencoderKL.from_pretrained(pipeline_folder() / "vae").eval()
        self._policy: Policy = load_policy(pipeline_folder())
        self._started = time.monotonic()
        self.reader = FeatureReader()

    def training(self) -> Sets:
        """What heads are trained on.

        Returns:
            Preferences of every source.
        """
        return {name: self._renders(name, count, 0, self._vae) for name, count in TRAINING_PAIRS.items()}

    def test(self) -> Sets:
        """What they are measured on: clean renders, fresh degradations, samples of validation prompts.

        Returns:
            Preferences of every source, and for each compositional head "held-out HEAD", scenes that all show a
            held-out combination.
        """
        sets = {name: self._renders(name, TEST_PAIRS, 1) for name in TRAINING_PAIRS}
        sets |= {f"held-out {name}": self._renders(name, TEST_PAIRS, 2, allowed=held_out) for name in COMPOSITIONAL}
        drawn = ranked_samples(self._policy, [p.prompt for p in validation_benchmark()[::2]], self._seed)
        samples = self._read("samples", next(iter(drawn.values())))
        return sets | {f"samples {head}": samples.ranked_by(ranked.pairs) for head, ranked in drawn.items()}

    def _renders(
        self, source: str, count: int, part: int, vae: AutoencoderKL | None = None, allowed: Callable | None = None
    ) -> Preferences:
        rng = np.random.default_rng([self._seed, 11, part, list(TRAINING_PAIRS).index(source)])
        if source == "degraded":
            drawn = ranked_degradations(count, rng, self._excluded, self._vae)
        else:
            options = {} if allowed is None else {"allowed": allowed}
            drawn = ranked_renders(source, count, rng, self._excluded, vae, **options)
        return self._read(source, drawn)

    def _read(self, source: str, drawn: RankedImages) -> Preferences:
        read = read_preferences(self.reader, drawn.images, drawn.prompts, drawn.pairs)
        seconds = time.monotonic() - self._started
        print(f"{source}: {len(drawn.images)} pictures, {len(drawn.pairs)} pairs ({seconds:.0f} s)", flush=True)
        return read


def pairs_for(head: str, sets: Sets) -> Preferences:
    """The pairs that a head is made for.

    Args:
        head: its name.
        sets: preferences by source.

    Returns:
        Aesthetic: degraded pictures; preference: everything; the others: scenes that differ in their respect.
    """
    if head == "aesthetic":
        return sets["degraded"]
    if head == "preference":
        return Preferences.cat([sets[name] for name in TRAINING_PAIRS])
    return sets[head]


def train_heads(output_dir: Path, steps: int | None = None, seed: int = 0) -> None:
    """Train the five heads, measure them on fresh pairs and save them.

    Args:
        output_dir: receives one safetensors file a head and `config.json`.
        steps: optimiser steps of each head; None means the shipped heads'.
        seed: seed of weights, images and captions.
    """
    sources = Sources(seed)
    training, test = sources.training(), sources.test()
    heads, measured = {}, {}
    chosen = STEPS if steps is None else dict.fromkeys(HEADS, steps)
    for name in HEADS:
        pairs = pairs_for(name, training)
        torch.manual_seed(seed)
        head = RewardHead(pairs.images.shape[1], pairs.tokens.shape[2], with_text=name not in IMAGE_ONLY)
        fit(head, pairs, chosen[name], seed)
        head.half().float()  # as it will be saved
        calibrate(head, pairs_for(name, test))
        heads[name], measured[name] = head, accuracies(name, head, test)
        print(f"{name}: {len(pairs)} pairs, {measured[name]}", flush=True)
    config = {"clip": clip_digest(clip_folder()), "width": head.width, "steps": chosen, "seed": seed}
    save_heads(heads, output_dir, config | {"accuracy": measured})


def calibrate(head: RewardHead, pairs: Preferences) -> None:
    """Set a head's scale: the mean reward of the better pictures becomes 1, that of the others 0."""
    better, worse = all_logits(head, pairs)
    head.scale.copy_(torch.stack([worse.mean(), better.mean()]))


def accuracies(head: str, trained: RewardHead, test: Sets) -> dict[str, float]:
    """Share of fresh pairs that a head ranks rightly.

    Args:
        head: its name.
        trained: the head.
        test: preferences by source.

    Returns:
        Share by source: those it was made for, held-out combinations, samples of validation prompts.
    """
    if head == "aesthetic":
        asked = ["degraded"]
    elif head == "preference":
        asked = [*TRAINING_PAIRS, "samples preference"]
    else:
        asked = [head, f"held-out {head}", f"samples {head}"]
    return {source: round(accuracy(trained, test[source]), 4) for source in asked}
