"""What a denoiser is told about prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told about B prompts. A model family fills what its denoiser reads; the rest is None.

    Whatever does not depend on the prompt (guidance scale, positions of image tokens) is the family's own and not here.

    Attributes:
        prompt_embeds: `[B, L, D]`, one row a token.
        pooled: `[B, P]`, one embedding a prompt.
        time_ids: `[B, 6]`, SDXL's size ids (original height and width, crop top and left, target height and width),
            in pixels.
        mask: `[B, L]`, 1 at tokens of the prompt and 0 at padding, integers.
    """

    prompt_embeds: Float[Tensor, "batch token width"]
    pooled: Float[Tensor, "batch pooled"] | None = None
    time_ids: Float[Tensor, "batch 6"] | None = None
    mask: Int[Tensor, "batch token"] | None = None

    def __len__(self) -> int:
        """Number of prompts B."""
        return len(self.prompt_embeds)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there.

        Returns:
            Name to tensor, each with a row a prompt.
        """
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """The same function of every tensor.

        Args:
            function: what to do with each.

        Returns:
            A condition of the results.
        """
        return Condition(**{name: function(value) for name, value in self.tensors().items()})

    def repeat_interleave(self, repeats: int) -> Condition:
        """Each prompt `repeats` times in a row.

        Args:
            repeats: how often.

        Returns:
            A condition of `B * repeats` rows.
        """
        return self.map(lambda x: x.repeat_interleave(repeats, dim=0))

    def index(self, rows: Int[Tensor, " rows"] | Sequence[int]) -> Condition:
        """Some rows, in the order given.

        Args:
            rows: row numbers; they may repeat.

        Returns:
            A condition of `len(rows)` rows.
        """
        return self.map(lambda x: x[torch.as_tensor(rows, dtype=torch.long, device=x.device)])

    def rows(self, start: int, stop: int) -> Condition:
        """Neighbouring rows, as views.

        Args:
            start: the first.
            stop: the one after the last.

        Returns:
            A condition of at most `stop - start` rows.
        """
        return self.map(lambda x: x[start:stop])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """The same condition elsewhere.

        Args:
            device: where to.
            dtype: float type; None keeps it. Integers stay integers.

        Returns:
            The moved condition.
        """
        return self.map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Rows of several conditions of one model, one after the other.

        Args:
            conditions: at least one.

        Returns:
            One condition.
        """
        parts = [condition.tensors() for condition in conditions]
        return Condition(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
