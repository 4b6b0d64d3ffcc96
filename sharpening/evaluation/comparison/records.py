"""What the comparison measured: a row an image judged, a row a system's cost; to Parquet and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from sharpening.evaluation.comparison.systems import Kind
from sharpening.evaluation.files import write_parquet

JUDGEMENTS, COSTS = "results.parquet", "costs.parquet"


class RecordError(ValueError):
    """Rows that contradict one another or are none of ours; the message names them."""


@dataclass(frozen=True, order=True)
class Setting:
    """How images were made: what a row of a table averages over.

    Attributes:
        system: the system's name.
        guidance_scale: guidance; 1 means unguided.
        steps: sampler steps T.
        nfe: denoiser evaluations an image cost, search included.
    """

    system: str
    guidance_scale: float
    steps: int
    nfe: int


@dataclass(frozen=True)
class ImageJudgement:
    """One image of a held-out prompt and what every judge said; `None` where a judge said nothing.

    Two systems' images of the same `seed` and `prompt` started from the same noise, so they are compared as a pair.

    Attributes:
        system: the system that made it.
        seed: seed of the training run or search, and of the noise that the image started from.
        guidance_scale: guidance; 1 means unguided.
        steps: sampler steps.
        nfe: denoiser evaluations the image cost, search included.
        prompt: place of the prompt in the benchmark.
        category: the prompt's category.
        clip: CLIP reward, cosine × 100.
        facts: share of the prompt's facts that the verifier finds.
        all: whether every fact holds.
        aesthetic: aesthetic score.
        preference: preference model's score.
        grader: multimodal grader's mean of five marks, 0 to 100.
    """

    system: str
    seed: int
    guidance_scale: float
    steps: int
    nfe: int
    prompt: int
    category: str
    clip: float | None = None
    facts: float | None = None
    all: bool | None = None
    aesthetic: float | None = None
    preference: float | None = None
    grader: float | None = None

    @property
    def setting(self) -> Setting:
        """How the image was made."""
        return Setting(self.system, self.guidance_scale, self.steps, self.nfe)


@dataclass(frozen=True)
class SystemCost:
    """What one seed of a system cost; a search has a row a budget.

    Attributes:
        system: the system.
        seed: seed of the run.
        kind: base, fine-tuning or search.
        training_nfe: denoiser evaluations of training.
        training_seconds: wall seconds of training, evaluation left out.
        device_seconds: process-seconds of training, all devices added up.
        nfe_per_image: denoiser evaluations of one image at inference, at the comparison's guidance.
        seconds_per_image: wall seconds of one image at inference.
        updates: optimiser updates.
        images_scored: images that training sent to the reward.
    """

    system: str
    seed: int
    kind: Kind
    training_nfe: int
    training_seconds: float
    device_seconds: float
    nfe_per_image: int
    seconds_per_image: float
    updates: int
    images_scored: int


Record = TypeVar("Record", ImageJudgement, SystemCost)


def write_records(path: Path, records: Sequence[ImageJudgement] | Sequence[SystemCost]) -> None:
    """Write records as a Parquet table, a row each.

    Args:
        path: the file.
        records: at least one, all of one type.

    Raises:
        RecordError: if there is none.
    """
    if not records:
        raise RecordError(f"there is nothing to write to {path.name}; judge at least one image")
    names = [field.name for field in fields(records[0])]
    write_parquet(path, {name: [getattr(record, name) for record in records] for name in names})


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read what `write_records` wrote.

    Args:
        path: the file.
        kind: `ImageJudgement` or `SystemCost`.

    Returns:
        The records, in the file's order.

    Raises:
        RecordError: if the table has other columns.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    expected = [field.name for field in fields(kind)]
    if table.column_names != expected:
        raise RecordError(f"{path.name} has the columns {table.column_names}; pass one with {expected}")
    return [kind(**row) for row in table.to_pylist()]
