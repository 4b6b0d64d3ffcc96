"""Where a run's training examples come from: prompts alone, images with captions, or preference pairs.

Imports no torch: a source travels to every actor, and command lines check one before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Int64, UInt8

Kind = Literal["prompts", "images", "pairs"]
"""What an example is: a prompt, an image and its caption, or a preferred and another image of one caption."""


class DataFileError(ValueError):
    """A data file cannot be used; the message is one sentence that says why and what to do."""


class ExampleError(DataFileError):
    """One example cannot be used, while the rest of the data may be; a run skips it.

    Attributes:
        reason: a few words that are the same for all examples with this fault, such as "corrupt image".
    """

    def __init__(self, reason: str, message: str) -> None:
        """Say what is wrong.

        Args:
            reason: the fault.
            message: one sentence that says where it is and what to do.
        """
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ExampleError], tuple[str, str]]:
        return ExampleError, (self.reason, str(self))


@dataclass(frozen=True)
class Batch:
    """P training examples.

    Attributes:
        prompts: P prompts.
        images: k images of each prompt. 0: prompts alone (height and width are 0 too); 1: an image of the prompt; 2:
            the preferred image, then the other.
        sizes: SDXL's size ids of each image (height and width of the original, top and left of the cut, height and
            width of the image), in pixels; None where all images are squares of the model's resolution.
    """

    prompts: list[str]
    images: UInt8[np.ndarray, "prompt image height width 3"]
    sizes: Int64[np.ndarray, "prompt 6"] | None = None

    def __len__(self) -> int:
        """Number of examples P."""
        return len(self.prompts)

    @classmethod
    def of_prompts(cls, prompts: Sequence[str]) -> Batch:
        """Prompts alone.

        Args:
            prompts: P prompts.

        Returns:
            A batch with `k = 0`.
        """
        return cls(list(prompts), np.zeros((len(prompts), 0, 0, 0, 3), np.uint8))

    @classmethod
    def cat(cls, batches: Sequence[Batch]) -> Batch:
        """Several batches as one.

        Args:
            batches: at least one, images of the same number and size, all or none with size ids.

        Returns:
            Their examples, one batch after the other.
        """
        sizes = [batch.sizes for batch in batches if batch.sizes is not None]
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        return cls(prompts, np.concatenate([b.images for b in batches]), np.concatenate(sizes) if sizes else None)

    def select(self, indices: Sequence[int]) -> Batch:
        """Some of the examples, in the order given.

        Args:
            indices: their places in this batch; they may repeat.

        Returns:
            A batch of `len(indices)` examples.
        """
        rows = np.asarray(indices, dtype=np.intp)
        sizes = None if self.sizes is None else self.sizes[rows]
        return Batch([self.prompts[i] for i in indices], self.images[rows], sizes)


class Source(Protocol):
    """Training examples in a fixed order, read in any order; can be pickled.

    Attributes:
        kind: what an example is.
    """

    kind: Kind

    def __len__(self) -> int:
        """Number of examples."""

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Prompts of some examples; no image is read."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some examples, their images read and decoded."""


class PromptSource:
    """Prompts alone, as methods that draw their own images need them.

    Attributes:
        kind: "prompts".
    """

    kind: Kind = "prompts"

    def __init__(self, prompts: Sequence[str]) -> None:
        """Make a source.

        Args:
            prompts: the prompts, in the source's order.
        """
        self._prompts = list(prompts)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._prompts)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Some prompts.

        Args:
            indices: their places, from 0.

        Returns:
            The prompts, in the order of `indices`.

        Raises:
            ExampleError: if one is blank.
        """
        found = [self._prompts[i] for i in indices]
        if not all(prompt.strip() for prompt in found):
            index = next(i for i in indices if not self._prompts[i].strip())
            raise ExampleError("empty caption", f"prompt {index} (the first is 0) is blank; write one or leave it out")
        return found

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some prompts, with no image.

        Args:
            indices: their places, from 0.

        Returns:
            A batch with `k = 0`.
        """
        return Batch.of_prompts(self.prompts(indices))
