"""MLflow: the server that `MLFLOW_TRACKING_URI` names, else a SQLite file in the run folder."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayjobs.tracking.base import Cell, TrackedRun, markdown

DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that is down is given up within a minute, not MLflow's quarter of an hour."""


class MLflow:
    """See `rayjobs.tracking.base.Tracker`. Keys (`MLFLOW_TRACKING_TOKEN` and the like) are MLflow's own variables."""

    def start(self, run: TrackedRun) -> dict[str, str]:
        """Create a run in the project's experiment, or set an earlier one going again."""
        for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **SHORT}.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._local = None if server else run.folder
        self._client = MlflowClient(server or f"sqlite:///{run.folder / DATABASE}")
        if "run_id" in run.identity:
            self._id = run.identity["run_id"]
            self._client.update_run(self._id, status="RUNNING")
            return dict(run.identity)
        self._id = self._client.create_run(self._experiment(run), run_name=run.name).info.run_id
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in run.config.items()}
        self._client.log_batch(self._id, params=[Param(name, text[:6000]) for name, text in texts.items()])
        return {"run_id": self._id}

    def _experiment(self, run: TrackedRun) -> str:
        found = self._client.get_experiment_by_name(run.project)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (run.folder / ARTIFACTS).as_uri() if self._local else None
        return str(self._client.create_experiment(run.project, artifact_location=artifacts))

    def where(self) -> str:
        """The store."""
        if self._local is None:
            return f"run {self._id} at MLFLOW_TRACKING_URI"
        return f"mlflow ui --backend-store-uri sqlite:///{self._local / DATABASE}"

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers at a step, in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    def image(self, name: str, path: Path, caption: str, step: int) -> None:
        """The picture as an artifact, under its own file name."""
        self._client.log_artifact(self._id, str(path), Path(name).parent.as_posix())

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """The table as a Markdown artifact."""
        self._client.log_text(self._id, markdown(columns, rows), f"{name}.md")

    def finish(self, completed: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, status="FINISHED" if completed else "FAILED")
