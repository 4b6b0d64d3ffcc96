"""Weights & Biases: online where `WANDB_API_KEY` is set, else into files in the run folder, to be sent later."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayjobs.tracking.base import Cell, TrackedRun

STEP = "update"  # axis of all charts; W&B's own step cannot go back, and a look may come after later updates
INIT_TIMEOUT, FINISH_TIMEOUT = 60.0, 45.0  # seconds


class WeightsAndBiases:
    """See `rayjobs.tracking.base.Tracker`. `WANDB_MODE`, `WANDB_BASE_URL`, `WANDB_ENTITY` and the like are heeded."""

    def start(self, run: TrackedRun) -> dict[str, str]:
        """Begin a run under an id of our own, or go on with it."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        identity = str(run.identity.get("id") or uuid.uuid4().hex[:12])
        key = os.environ.get("WANDB_API_KEY")
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if key else "offline")  # W&B refuses words of no mode
        # Neither the console nor the host: both may hold what is nobody else's business.
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, disable_job_creation=True, host="-",
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)), finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=run.project, name=run.name, id=identity, resume="allow", dir=str(run.folder), mode=mode,
            config=dict(run.config), allow_val_change=True, settings=settings,
        )  # fmt: skip
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._mode = str(mode)
        return {"id": identity}

    def where(self) -> str:
        """The run's page, or how to send what was kept here."""
        if self._mode == "online":
            return str(self._run.url)
        return f"{self._mode}; send it with: wandb sync {Path(self._run.dir).parent}"

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        self._run.log({**numbers, STEP: step})

    def image(self, name: str, path: Path, caption: str, step: int) -> None:
        """The picture with its caption."""
        self._run.log({name: self._wandb.Image(str(path), caption=caption), STEP: step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """A table of W&B's."""
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows]), STEP: step})

    def finish(self, completed: bool) -> None:
        """Send the rest, for a limited time."""
        self._run.finish(exit_code=0 if completed else 1)
