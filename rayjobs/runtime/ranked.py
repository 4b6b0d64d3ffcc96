"""Preference pairs that a run ranks itself: the base model draws images, the reward picks the best and the worst.

`training_source` is what a run of any method learns from, these pairs or data that are ready.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rayjobs.errors import RunStopped
from rayjobs.options import JobOptions, PairOptions
from rayjobs.runtime.training_data import open_source, prompt_source, resolution
from sharpening.data.prompts import Stream
from sharpening.data.source import Kind
from sharpening.evaluation.run_folder import RunFolder
from sharpening.slots import tasks

if TYPE_CHECKING:
    from sharpening.data.pairs import PairFile
    from sharpening.data.source import Batch, Source
    from sharpening.methods.ranking import RankedPairs

PAIRS = "pairs.parquet"


class OwnPairs:
    """The pairs that a run ranks itself: a source whose file is opened when the first of them is asked for.

    Args:
        path: The file that will be there by then.
        resolution: Height and width of the images, in pixels.

    Attributes:
        kind: "pairs".
    """

    kind: Kind = "pairs"

    def __init__(self, path: Path, resolution: int) -> None:
        self._path, self._resolution = path, resolution

    @cached_property
    def _file(self) -> "PairFile":
        from sharpening.data.pairs import CAPTION, PairFile

        return PairFile(self._path, CAPTION, self._resolution)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._file)

    def prompts(self, indices: Sequence[int]) -> list[str]:
        """Captions of some pairs."""
        return self._file.prompts(indices)

    def batch(self, indices: Sequence[int]) -> "Batch":
        """Some pairs with their captions."""
        return self._file.batch(indices)


def training_source(options: JobOptions, folder: RunFolder) -> "Source | None":
    """The examples that a run learns from.

    Args:
        options: The run's options.
        folder: Its folder, which may hold pairs that an earlier start of the run ranked.

    Returns:
        The source; `None` while the pairs are still to be ranked.

    Raises:
        OptionError: If a file cannot be used.
    """  # noqa: DOC502
    if isinstance(options, PairOptions) and options.ranks:
        return ranked_pairs(options, folder) if (folder.path / PAIRS).exists() else None
    return open_source(options)


def ranked_pairs(options: JobOptions, folder: RunFolder) -> OwnPairs:
    """The pairs that a run ranks itself, whether it has done so yet or not.

    Args:
        options: The run's options.
        folder: Its folder.

    Returns:
        The source.
    """
    return OwnPairs((folder.path / PAIRS).resolve(), resolution(options))


@dataclass(frozen=True)
class RankTask:
    """A batch of prompts to draw images for and rank.

    Attributes:
        items: Places of the prompts among the training prompts; they seed the noise.
        prompts: The prompts.
        samples: Images of a prompt.
    """

    items: tuple[int, ...]
    prompts: tuple[str, ...]
    samples: int


def rank_tasks(options: JobOptions) -> list[RankTask]:
    """Cut the prompts that a run ranks pairs for into tasks.

    Args:
        options: The run's options.

    Returns:
        Tasks of `rollout_batch_size` prompts.
    """
    from sharpening.data.reading import read

    assert isinstance(options, PairOptions)
    source, size = prompt_source(options), options.rollout_batch_size
    stream = Stream(len(source), options.seed, size)
    found = []
    for number, slots in enumerate(tasks(range(min(options.ranked_prompts, len(source))), size)):
        within = range(len(slots))
        items = tuple(stream.index(number, slot) for slot in within)
        prompts = read(source, items, options.seed, number, within).batch.prompts
        found.append(RankTask(items, tuple(prompts), options.ranked_samples))
    return found


def write_ranked(found: "Sequence[RankedPairs]", options: JobOptions, folder: RunFolder) -> tuple[int, str]:
    """Keep ranked pairs in the run folder.

    Args:
        found: What the tasks found, in order.
        options: The run's options.
        folder: Its folder.

    Returns:
        How many pairs there are, and what became of the other prompts, as the end of a sentence.

    Raises:
        RunStopped: If too large a share of the prompts could not be scored, or no pair is left.
    """
    from sharpening.data.pairs import write_pairs

    reasons = Counter(reason for part in found for _, reason in part.dropped)
    ties, asked = sum(len(part.ties) for part in found), sum(len(task.items) for task in rank_tasks(options))
    if sum(reasons.values()) > options.max_failed_share * asked:
        raise RunStopped(f"{sum(reasons.values())} of {asked} prompts could not be ranked ({_counts(reasons)})")
    pairs = sum(len(part.slots) for part in found)
    if not pairs:
        raise RunStopped("no prompt has a best and a worst image: the reward does not tell its images apart")
    write_pairs(folder.path / PAIRS, (row for part in found for row in part.rows()))
    unused = [f"{ties} ties"] * bool(ties) + [_counts(reasons)] * bool(reasons)
    return pairs, f" ({', '.join(unused)} left out)" if unused else ""


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
