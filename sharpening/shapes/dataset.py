"""The embedded world's pictures and captions as training data; imports no torch.

`python -m sharpening.shapes.dataset --output FILE.parquet --count N --seed S` writes as a file what `EmbeddedImages`
draws on the fly.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sharpening.data.images import CAPTION, IMAGE, write_images
from sharpening.data.source import Batch, Kind
from sharpening.seeds import generator
from sharpening.shapes.benchmark import caption_for, excluded_prompts, training_scene
from sharpening.shapes.render import render
from sharpening.shapes.scene import IMAGE_SIZE, Scene

_excluded = lru_cache(maxsize=1)(excluded_prompts)


class EmbeddedImages:
    """Rendered scenes with captions: no caption is a benchmark's prompt, no scene shows a held-out combination.

    Example i depends on (seed, i) alone.

    Attributes:
        kind: "images".
        count: number of examples.
        seed: seed of scenes and captions.
    """

    kind: Kind = "images"

    def __init__(self, count: int, seed: int = 0) -> None:
        """Make a source.

        Args:
            count: number of examples.
            seed: seed of scenes and captions.
        """
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        """Number of examples."""
        return self.count

    def example(self, index: int) -> tuple[Scene, str]:
        """One example, not yet drawn.

        Args:
            index: its place, from 0.

        Returns:
            The scene and its caption.

        Raises:
            IndexError: if there is no such example.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"there are examples 0 to {self.count - 1}, not {index}")
        rng = generator(self.seed, "embedded image", index)
        scene = training_scene(rng)
        return scene, caption_for(scene, rng, _excluded())[0]

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some examples; nothing is rendered.

        Args:
            indices: their places, from 0.

        Returns:
            The captions, in the order of `indices`.
        """
        return [self.example(int(index))[1] for index in indices]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some examples, rendered.

        Args:
            indices: their places, from 0.

        Returns:
            A batch with `k = 1` of 64×64 images.
        """
        images = np.empty((len(indices), 1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        prompts = []
        for place, index in enumerate(indices):
            scene, caption = self.example(int(index))
            images[place, 0] = render(scene)
            prompts.append(caption)
        return Batch(prompts, images)


def rows(source: EmbeddedImages) -> Iterator[dict[str, Any]]:
    """Rows of the Parquet file.

    Args:
        source: what to write.

    Yields:
        Image uint8 `[64, 64, 3]`, caption, and the scene as JSON (positions and radii in pixels).
    """
    for index in range(len(source)):
        scene, caption = source.example(index)
        yield {IMAGE: render(scene), CAPTION: caption, "scene": json.dumps(dataclasses.asdict(scene))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(prog="python -m sharpening.shapes.dataset", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the Parquet file to write")
    parser.add_argument("--count", type=int, default=4000, help="examples (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes and captions (default: 0)")
    args = parser.parse_args(arguments)
    if args.count < 1:
        parser.error(f"--count {args.count}: there is nothing to write; pass 1 or more")
    if not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}; make it first")
    write_images(args.output, rows(EmbeddedImages(args.count, args.seed)))


if __name__ == "__main__":
    main()
