"""Prompts out of rows, for lists that are too long to be held in memory."""

from __future__ import annotations

from collections.abc import Sequence

from sharpening.data.columns import captions, check_caption_column
from sharpening.data.rows import Rows
from sharpening.data.source import Batch, Kind


class PromptRows:
    """Prompts alone, a row each; a row is read when it is asked for.

    Attributes:
        kind: "prompts".
        file: the rows.
        column: column of the prompts.
    """

    kind: Kind = "prompts"

    def __init__(self, rows: Rows, column: str) -> None:
        """Make a source; no row is read.

        Args:
            rows: the rows.
            column: column of the prompts.

        Raises:
            DataFileError: if there is no such column, or it holds no text.
        """  # noqa: DOC502
        self.file, self.column = rows, column
        check_caption_column(rows, column)
        rows.check_groups([column])

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.file)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Some prompts.

        Args:
            indices: numbers of the rows, from 0.

        Returns:
            The prompts, stripped, in the order of `indices`.
        """
        return captions(self.file, self.column, indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some prompts, with no image.

        Args:
            indices: numbers of the rows, from 0.

        Returns:
            A batch with `k = 0`.
        """
        return Batch.of_prompts(self.prompts(indices))
