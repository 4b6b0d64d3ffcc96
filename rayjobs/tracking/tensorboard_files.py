"""TensorBoard: event files in the run folder, one for each start of the run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayjobs.tracking.base import Cell, TrackedRun, markdown


class TensorBoard:
    """See `rayjobs.tracking.base.Tracker`. A run that goes on adds a file, which TensorBoard reads as one run."""

    def start(self, run: TrackedRun) -> dict[str, str]:
        """Open an event file; the first one holds the configuration as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run.folder
        self._writer = SummaryWriter(str(run.folder))
        if not run.identity:
            text = json.dumps(run.config, indent=2, ensure_ascii=False)
            self._writer.add_text("config", f"```json\n{text}\n```", 0)
        return {"run": run.name}

    def where(self) -> str:
        """The command that shows it."""
        return f"tensorboard --logdir {self._folder}"

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, name: str, path: Path, caption: str, step: int) -> None:
        """The picture; TensorBoard has no captions, and our grids carry theirs."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """The table as Markdown, which TensorBoard shows as a table."""
        self._writer.add_text(name, markdown(columns, rows), step)
        self._writer.flush()

    def finish(self, completed: bool) -> None:
        """Close the file."""
        self._writer.close()
