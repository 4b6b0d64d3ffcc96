"""The folder a run leaves behind, which explains the run: whose it is, and what is written where."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpening.evaluation.cost import CostAccount
from sharpening.evaluation.files import disk_errors, write_bytes, write_json, write_parquet
from sharpening.evaluation.metrics import MetricsLog
from sharpening.evaluation.summary import PromptResult, result_columns

if TYPE_CHECKING:
    from PIL.Image import Image

CONFIG, VERSIONS, SUMMARY, COST = "config.json", "versions.json", "summary.json", "cost.json"
EVALUATION, VALIDATION, CURVE = "evaluation.parquet", "validation.parquet", "reward_curve.png"
OWN_PROMPTS = "own_prompts.parquet"
PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "open_clip_torch", "safetensors", "numpy",
    "scipy", "pyarrow", "pydantic", "pillow", "matplotlib", "ray", "deepspeed",
)  # fmt: skip
SOURCE = Path(__file__).resolve().parents[2]


class RunFolderError(Exception):
    """A folder cannot be this run's; the message says why and what to do."""


class RunFolder:
    """Paths and writers of one run. Use `create` or `resume`.

    Args:
        path: the folder.

    Attributes:
        path: the folder.
        checkpoints: where checkpoints go.
        pipeline: where the final pipeline goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pipeline = path / "pipeline"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """Make a run's folder and claim it.

        Args:
            path: a folder that no run has claimed; parents are made.
            config: the resolved configuration, for `config.json`.

        Returns:
            The folder, with `config.json`, `versions.json` and an empty `checkpoints/`.

        Raises:
            RunFolderError: if the folder belongs to another run.
            DiskFull: if there is no room.
        """  # noqa: DOC503
        run = cls(Path(path))
        with disk_errors(run.path):
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            try:  # creating the file is the claim: of two runs that start at once, one fails here
                os.close(os.open(run.path / CONFIG, os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError as error:
                raise RunFolderError(f"{run.path} belongs to another run; pass another folder") from error
        write_json(run.path / CONFIG, config)
        write_json(run.path / VERSIONS, versions())
        return run

    @classmethod
    def resume(cls, path: str | Path) -> RunFolder:
        """Open the folder of a run that goes on.

        Args:
            path: the folder.

        Returns:
            The folder.

        Raises:
            RunFolderError: if no run has claimed it.
        """
        run = cls(Path(path))
        if not (run.path / CONFIG).is_file():
            raise RunFolderError(f"{run.path} belongs to no run (no {CONFIG}); start afresh there")
        run.checkpoints.mkdir(exist_ok=True)
        return run

    def config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return json.loads((self.path / CONFIG).read_text(encoding="utf-8"))

    def metrics(self) -> MetricsLog:
        """The run's metrics, with the rows it has so far."""
        return MetricsLog(self.path)

    def write_evaluation(self, results: Sequence[PromptResult]) -> None:
        """Write `evaluation.parquet`: a row a prompt, phase and guidance scale."""
        write_parquet(self.path / EVALUATION, result_columns(results))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, as `sharpening.evaluation.summary.summarise` gives it."""
        write_json(self.path / SUMMARY, summary)

    def write_cost(self, cost: CostAccount) -> None:
        """Write `cost.json`."""
        write_json(self.path / COST, cost.as_dict())

    def read_cost(self) -> CostAccount:
        """The account so far, for a run that goes on; an empty one where there is none."""
        path = self.path / COST
        return CostAccount.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else CostAccount()

    def write_image(self, name: str, image: Image, captions: Sequence[str] = ()) -> Path:
        """Write a PNG.

        Args:
            name: file name, such as `samples_before.png`.
            image: a PIL image.
            captions: what its parts show, in order; kept as text in the file ("Description", a line each).

        Returns:
            The file.
        """
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        if captions:
            text.add_itxt("Description", "\n".join(" ".join(caption.split()) for caption in captions))
        buffer = BytesIO()
        image.save(buffer, format="PNG", pnginfo=text)
        write_bytes(self.path / name, buffer.getvalue())
        return self.path / name

    def validation(self) -> list[dict[str, Any]]:
        """Read what the run found on held-out prompts so far.

        Returns:
            A row a look; none where it did not look.
        """
        return self._rows(VALIDATION)

    def own_prompts(self) -> list[dict[str, Any]]:
        """Read what the reward said of the user's own prompts so far.

        Returns:
            A row an image: `update`, `prompt`, `image` (its number among the prompt's), `reward`, and `reward_<name>`
            of several rewards; none where the user named no prompt.
        """
        return self._rows(OWN_PROMPTS)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        path = self.path / name
        return pq.read_table(path).to_pylist() if path.exists() else []

    def write_curve(
        self,
        rows: Sequence[Mapping[str, Any]],
        reward: str,
        held_out: Sequence[Mapping[str, Any]] = (),
        parts: Sequence[str] = (),
    ) -> Path | None:
        """Draw `reward_curve.png`.

        Args:
            rows: metrics, a row an update.
            reward: the reward's name and unit.
            held_out: looks at held-out prompts, as `reward_curve` has them.
            parts: names of several rewards, where there are.

        Returns:
            The file; `None` when there is nothing to draw yet.
        """
        from sharpening.evaluation.plots import reward_curve

        if not rows:
            return None
        write_bytes(self.path / CURVE, reward_curve(rows, reward, held_out, parts))
        return self.path / CURVE


def versions() -> dict[str, Any]:
    """What a run ran on: Python, packages, this project's commit, the platform. Names no host, user or path.

    Returns:
        Contents of `versions.json`.
    """
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "packages": packages,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "platform": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    }


def _git(*arguments: str) -> str | None:
    """What git says about this project's source, `None` where the source is no checkout."""
    if not (SOURCE / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(SOURCE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
