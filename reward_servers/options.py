"""Options of a reward application; imports neither torch nor Ray."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RewardAppOptions(BaseModel):
    """What is served, and with what resources. Command lines may pass every value as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(default="reward", description="application name, as the dashboard's Serve page shows it")
    reward: str = Field(default="clip", description="name of the reward, or the import path module:class of a scorer")
    model: str | None = Field(
        default=None, description="the reward's model; none: its default, for clip the embedded one"
    )
    checkpoint: str | None = Field(default=None, description="weights of an architecture: a file or a pretrained tag")
    options: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the scorer's class")
    batch_size: int = Field(default=32, ge=1, description="images of a forward pass; the last is padded to that many")
    device: str | None = Field(default=None, description="torch device; none: cuda if replicas reserve GPUs, else cpu")
    num_replicas: int = Field(default=1, ge=1, description="replicas, each a process with its own model")
    num_cpus: float = Field(default=1.0, ge=0, description="CPUs that Ray reserves for a replica")
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs that Ray reserves for a replica; shares of one are allowed"
    )
    node_labels: dict[str, str] = Field(
        default_factory=dict,
        description="labels of Ray's nodes that replicas may run on, such as role: rollout; none: any node",
    )
    num_threads: int = Field(
        default=1, ge=1, description="torch threads of a replica; the low bits of scores depend on it"
    )
    max_batch_requests: int = Field(default=16, ge=1, description="requests that are scored together at most")
    batch_wait_timeout_s: float = Field(
        default=0.005, ge=0, description="seconds a request waits for others to join it"
    )
    max_ongoing_requests: int = Field(
        default=64, ge=1, description="requests that a replica holds, being scored or waiting"
    )
    health_check_period_s: float = Field(default=2.0, gt=0, description="seconds between health checks of a replica")

    @model_validator(mode="after")
    def _batches_can_fill(self) -> RewardAppOptions:
        if self.max_ongoing_requests < self.max_batch_requests:
            raise ValueError(
                f"max_ongoing_requests {self.max_ongoing_requests} keeps batches below max_batch_requests "
                f"{self.max_batch_requests}; pass at least as many"
            )
        return self

    @property
    def deployment_name(self) -> str:
        """Name of the deployment on the dashboard: `ClipReward` for `clip`."""
        words = self.reward.rpartition(":")[2].replace("-", "_").split("_")
        return "".join(word[:1].upper() + word[1:] for word in words) + "Reward"

    def scorer_options(self) -> dict[str, Any]:
        """Keyword arguments of the scorer's class; what was left open keeps the class's default."""
        given = {"model": self.model, "checkpoint": self.checkpoint}
        device = self.device or ("cuda" if self.num_gpus > 0 else "cpu")
        chosen = {name: value for name, value in given.items() if value is not None}
        return {**chosen, **self.options, "device": device, "batch_size": self.batch_size}
