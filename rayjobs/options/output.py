"""Options of where a run is kept, who follows it and where its pipeline goes. Nothing heavy is imported."""

from pathlib import PurePath
from typing import Any, Literal

from pydantic import field_validator

from rayjobs.options.declaring import Options, option

TRACKERS = ("tensorboard", "wandb", "mlflow")


class OutputOptions(Options):
    """The run folder, its checkpoints, trackers and the hub."""

    output_dir: str | None = option(
        None, "output", "folder or address", "the run folder, or where to copy it while the run goes on: s3://, gs://, "
        "abfss://, hdfs://, file://; keys come from the environment", shown="runs/<method>-<date>-<time>", resume=False,
    )  # fmt: skip
    local_dir: str | None = option(
        None, "output", "folder", "the run folder of a run whose --output_dir is an address; every node must see it",
        shown="runs/<the address's last part>", resume=False,
    )  # fmt: skip
    checkpointing_steps: int = option(10, "output", "updates", "updates between checkpoints", resume=False, ge=1)
    checkpoints_total_limit: int | None = option(2, "output", "checkpoints", "checkpoints to keep", resume=False, ge=1)
    resume_from_checkpoint: str | None = option(
        None, "output", "folder, address or 'latest'", "checkpoint to go on from", shown="start afresh", resume=False
    )
    report_to: tuple[Literal["none", "tensorboard", "wandb", "mlflow", "all"], ...] = option(
        ("none",), "output", "names", "trackers that follow the run: tensorboard, wandb, mlflow, all or none; their "
        "keys come from the environment", resume=False,
    )  # fmt: skip
    tracker_project_name: str = option(
        "trajectory-sharpening", "output", "name", "project (MLflow: experiment) that trackers file the run under",
        resume=False,
    )  # fmt: skip
    logging_dir: str = option(
        "logs", "output", "folder", "where trackers keep their files, inside the run folder", resume=False
    )
    push_to_hub: bool = option(
        False, "output", "switch", "upload the pipeline at the end, with the token in HF_TOKEN", resume=False
    )
    hub_model_id: str | None = option(
        None, "output", "owner/name", "repository to upload to", shown="the run folder's name", resume=False
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _split_trackers(cls, value: Any) -> Any:
        """Accept `tensorboard wandb`, `tensorboard,wandb` and, as diffusers' scripts do, `all`."""
        items = value if isinstance(value, (list, tuple)) else [value]
        names = [name.strip() for item in items for name in str(item).split(",") if name.strip()]
        return TRACKERS if "all" in names else tuple(dict.fromkeys(names)) or ("none",)

    @field_validator("report_to")
    @classmethod
    def _check_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in value and len(value) > 1:
            raise ValueError("none goes with no other tracker; leave it out")
        return value

    @field_validator("logging_dir")
    @classmethod
    def _check_logging_dir(cls, value: str) -> str:
        if not value or PurePath(value).is_absolute() or ".." in PurePath(value).parts:
            raise ValueError("must be inside the run folder; pass a relative name such as logs")
        return value

    @property
    def run_folder(self) -> str | None:
        """The folder that the run works in, wherever it is copied to."""
        return self.local_dir or self.output_dir

    @property
    def folder_option(self) -> str:
        """The option that names that folder."""
        return "local_dir" if self.local_dir else "output_dir"

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that follow the run."""
        return tuple(name for name in self.report_to if name != "none")
