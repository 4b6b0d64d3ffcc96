"""Prompt files, and the endless stream of prompts a run draws from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from sharpening.data.shuffle import shuffled
from sharpening.seeds import generator


class PromptFileError(ValueError):
    """A prompt file cannot be used; the message is one sentence that says why and what to do."""


def load_prompts(path: str | Path, column: str = "prompt", keep_blank: bool = False) -> list[str]:
    """Read prompts from a text file (one a line), a JSON Lines file or a Parquet file.

    Args:
        path: file ending in .txt, .jsonl or .parquet.
        column: field of the JSON objects or column of the table; text files have none.
        keep_blank: whether rows without text stay, as "", so that whoever meets one can count it. Blank lines of a text
            file are no rows.

    Returns:
        The prompts, stripped, in the file's order.

    Raises:
        PromptFileError: if the file is absent, empty, wrongly encoded, lacks the column or holds no usable prompt.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, str], list[object]]] = {
        ".txt": _read_text,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise PromptFileError(f"{path} is not a prompt file; pass one that ends in {', '.join(readers)}")
    if not path.is_file():
        raise PromptFileError(f"there is no file {path}; pass an existing prompt file")
    try:
        if path.stat().st_size == 0:
            raise PromptFileError(f"{path} is empty; put at least one prompt into it")
        values = readers[path.suffix](path, column)
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
    prompts = [value.strip() if isinstance(value, str) else "" for value in values]
    if not any(prompts):
        raise PromptFileError(f"{path} holds no usable prompt; put at least one non-blank text into it")
    return prompts if keep_blank else [prompt for prompt in prompts if prompt]


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _read_text(path: Path, column: str) -> list[object]:
    return [line for line in _decode(path).splitlines() if line.strip()]


def _read_jsonl(path: Path, column: str) -> list[object]:
    values = []
    # Split at newlines alone: JSON strings may hold other line separators.
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise PromptFileError(f"{path} line {number} is not JSON; write one JSON object a line") from None
        if not isinstance(entry, dict):
            raise PromptFileError(f"{path} line {number} is not a JSON object; write one JSON object a line")
        if column not in entry:
            raise PromptFileError(_no_column(path, column, sorted(entry), f" line {number}"))
        values.append(entry[column])
    return values


def _read_parquet(path: Path, column: str) -> list[object]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if column not in names:
            raise PromptFileError(_no_column(path, column, names))
        values = pq.read_table(path, columns=[column]).column(column).to_pylist()
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise PromptFileError(f"{path} is not a readable Parquet file ({reason}); write it again") from None
    except UnicodeDecodeError:
        raise PromptFileError(f"{path} holds text that is not UTF-8; write it again as UTF-8") from None
    return values


def _no_column(path: Path, column: str, present: Sequence[str], where: str = "") -> str:
    return f"{path}{where} has no column {column!r}; choose one of: {', '.join(present) or '(none)'}"


PERMUTED = 2**20
"""Up to so many examples, an epoch's order is one permutation in memory; above, places are computed one by one."""


class Stream:
    """The example of every slot of every update; a pure function, so nothing of it needs a checkpoint.

    Slots of successive updates walk through shuffled epochs of the examples. Refills (slots from `per_update` on) are
    drawn at random, so that a refill never shifts what later updates see. The cursor is the update's number, and
    neither time nor memory grows with the number of examples.

    Attributes:
        count: how many examples there are.
        run_seed: the run's seed.
        per_update: slots an update has before refills.
    """

    def __init__(self, count: int, run_seed: int, per_update: int) -> None:
        """Make a stream.

        Args:
            count: how many examples there are, at least one.
            run_seed: the run's seed.
            per_update: slots an update has before refills.

        Raises:
            ValueError: if there is no example.
        """
        if count < 1:
            raise ValueError("a stream needs at least one example")
        self.count = count
        self.run_seed = run_seed
        self.per_update = per_update

    def index(self, update: int, slot: int) -> int:
        """Which example one slot gets.

        Args:
            update: update, from 0.
            slot: slot of that update, from 0.

        Returns:
            Its place among the examples, from 0.
        """
        if slot >= self.per_update:
            return int(generator(self.run_seed, "refill", update, slot).integers(self.count))
        epoch, place = divmod(update * self.per_update + slot, self.count)
        if self.count > PERMUTED:
            return shuffled(place, self.count, self.run_seed, "prompts", epoch)
        return int(_permutation(self.run_seed, epoch, self.count)[place])


class PromptStream(Stream):
    """The prompt of every slot of every update: a `Stream` over a list of prompts.

    Attributes:
        prompts: the list.
    """

    def __init__(self, prompts: Sequence[str], run_seed: int, prompts_per_update: int) -> None:
        """Make a stream.

        Args:
            prompts: at least one prompt.
            run_seed: the run's seed.
            prompts_per_update: slots an update has before refills.
        """
        super().__init__(len(prompts), run_seed, prompts_per_update)
        self.prompts = list(prompts)

    def prompt(self, update: int, slot: int) -> str:
        """The prompt of one slot.

        Args:
            update: update, from 0.
            slot: slot of that update, from 0.

        Returns:
            The prompt.
        """
        return self.prompts[self.index(update, slot)]


@lru_cache(maxsize=4)
def _permutation(run_seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(run_seed, "prompts", epoch).permutation(count)
