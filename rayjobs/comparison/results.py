"""What a comparison has measured so far, on disk: a file a system and seed, so that nothing is measured twice."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayjobs.errors import OptionError
from sharpening.evaluation.comparison.records import ImageJudgement, SystemCost, read_records, write_records
from sharpening.evaluation.files import write_bytes


class Store:
    """Judgements, features and costs of systems under a comparison's folder.

    Args:
        folder: The comparison's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "judged"
        self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether a system's judgements of a seed are there (`rlhf-s0`)."""
        return self._path(name, "parquet").exists()

    def write(
        self, name: str, judgements: Sequence[ImageJudgement], costs: Sequence[SystemCost] = (),
        features: np.ndarray | None = None, ungraded: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Keep what was measured; the judgements last, so that `has` means all of it.

        Args:
            name: System and seed.
            judgements: A row an image.
            costs: A row a budget.
            features: float64 [prompts, images, D].
            ungraded: Why images have no grade, a reason each.
        """
        if features is not None:
            partial = self._path(name, "partial.npy")
            np.save(partial, features)
            partial.rename(self._path(name, "npy"))
        if ungraded:
            write_json(self._path(name, "ungraded.json"), dict(Counter(ungraded)))
        if costs:
            write_records(self._path(name, "costs.parquet"), list(costs))
        write_records(self._path(name, "parquet"), list(judgements))

    def judgements(self) -> list[ImageJudgement]:
        """All judgements."""
        return [row for path in self._all() for row in read_records(path, ImageJudgement)]

    def costs(self) -> list[SystemCost]:
        """All costs."""
        return [row for path in sorted(self._folder.glob("*.costs.parquet")) for row in read_records(path, SystemCost)]

    def ungraded(self) -> Counter[str]:
        """How many images have no grade, by reason."""
        return sum((Counter(read_json(path)) for path in self._folder.glob("*.ungraded.json")), Counter[str]())

    def features(self) -> dict[str, np.ndarray]:
        """Features by system and seed."""
        return {path.stem: np.load(path) for path in sorted(self._folder.glob("*.npy")) if ".partial" not in path.name}

    def _all(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob("*.parquet")) if not path.name.endswith(".costs.parquet")]

    def _path(self, name: str, kind: str) -> Path:
        return self._folder / f"{name}.{kind}"


def claim(folder: Path, name: str, values: dict[str, Any], growing: Sequence[str] = ()) -> None:
    """Make a job's folder, or check that it is this job's.

    Args:
        folder: The folder.
        name: The file in it that says what the job was told, called after the job.
        values: What this one is told.
        growing: What may change when the job goes on.

    Raises:
        OptionError: If the folder cannot be used, holds something else, or a job that was told something else.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = read_json(path)
    except (OSError, ValueError) as error:
        raise OptionError("output_dir", f"{folder} cannot be used ({error})", "pass another folder") from error
    if not known and any(folder.iterdir()):
        raise OptionError("output_dir", f"{folder} holds something else", "pass another folder")
    differing = [name for name in values if known and known.get(name) != values[name] and name not in growing]
    if differing:
        raise OptionError(
            differing[0], f"is {json.dumps(values[differing[0]])}, but the {path.stem} in {folder} has "
            f"{json.dumps(known.get(differing[0]))}", "pass that, or another --output_dir",
        )  # fmt: skip
    write_json(path, values)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's contents; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as a whole."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())
