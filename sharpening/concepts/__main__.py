"""Draw the figures of docs/concepts.md: `python -m sharpening.concepts --output docs/images/concepts`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from sharpening.concepts import pictures
from sharpening.concepts.walk import drawn, noised, walk
from sharpening.policies import load_policy
from sharpening.rewards.clip import ClipScorer
from sharpening.shapes.assets import clip_folder, pipeline_folder, validation_benchmark

STEPS, SCALES = 12, (1.0, 1.5, 2.0, 3.0, 5.0)  # T; w
PLACES = [1, 4, 7, 10]  # K timesteps of the walk, in the grid
BETA, SCALE, GAPS = 200.0, 0.02, (0.0, 20.0, 60.0)  # the job's β; an η; gaps in CLIP's unit


def main() -> None:
    """Draw, decode, judge, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("concepts"), help="folder of the figures (PNG)")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    policy, score = load_policy(pipeline_folder()), ClipScorer(str(clip_folder()))
    known = {entry.category: entry.prompt for entry in reversed(validation_benchmark())}  # the first of each category
    prompt = known["colour"]
    found = walk(policy, score, prompt, branches=4, states=2, places=PLACES, steps=STEPS)
    shown = [known[category] for category in ("colour", "texture", "spatial", "complex")]
    images = np.stack(
        [np.stack([policy.decode(drawn(policy, text, 1, STEPS, w))[0] for w in SCALES]) for text in shown]
    )
    with torch.no_grad():
        rewards = np.stack([score(row, [text] * len(SCALES)).values for text, row in zip(shown, images, strict=True)])
    for name, picture in (
        ("noising", pictures.noising(noised(policy, score, prompt, STEPS), prompt)),
        ("branches", pictures.branches(found, prompt)),
        ("temperature", pictures.temperature(found)),
        ("loss", pictures.loss_curves(BETA, SCALE, GAPS)),
        ("guidance", pictures.guidance(images, rewards, shown, SCALES)),
    ):
        (output / f"{name}.png").write_bytes(picture)
        print(output / f"{name}.png")


if __name__ == "__main__":
    main()
