"""Options of a reward application; imports neither torch nor Ray."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RESERVED = ("model", "checkpoint", "device", "batch_size")
"""Keyword arguments of scorers that have options of their own here."""


class RewardAppOptions(BaseModel):
    """What is served, and with what resources. Command lines may pass every value as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(default="reward", description="application name, as the dashboard's Serve page shows it")
    reward: str = Field(default="clip", description="name of the reward, or the import path module:class of a scorer")
    model: str | None = Field(
        default=None, description="the reward's model; none: its default, for clip the embedded one"
    )
    checkpoint: str | None = Field(default=None, description="weights of an architecture: a file or a pretrained tag")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further keyword arguments of the scorer's class; as text, a JSON object"
    )
    batch_size: int = Field(default=32, ge=1, description="images of a forward pass; the last is padded to that many")
    device: str | None = Field(default=None, description="torch device; none: cuda if replicas reserve GPUs, else cpu")
    num_replicas: int = Field(default=1, ge=1, description="replicas, each a process with its own model")
    min_replicas: int = Field(default=1, ge=1, description="replicas that autoscaling keeps at least")
    max_replicas: int | None = Field(
        default=None, ge=1, description="replicas that autoscaling starts at most; none: num_replicas, always"
    )
    target_ongoing_requests: float | None = Field(
        default=None,
        gt=0,
        description="requests, being scored or waiting, for which autoscaling keeps one replica; "
        "none: twice what it scores together",
    )
    upscale_delay_s: float = Field(default=10.0, ge=0, description="seconds of load before autoscaling adds a replica")
    downscale_delay_s: float = Field(
        default=300.0, ge=0, description="seconds without load before autoscaling removes a replica"
    )
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
    max_batch_requests: int = Field(default=64, ge=1, description="requests that are scored together at most")
    max_batch_images: int = Field(
        default=64,
        ge=1,
        description="images that are scored together at most, a larger request by itself; multiples of batch_size "
        "are not padded",
    )
    batch_wait_timeout_s: float = Field(
        default=0.005, ge=0, description="seconds a request waits for others to join it while the scorer is idle"
    )
    max_ongoing_requests: int = Field(
        default=512, ge=1, description="requests that a replica holds, being scored or waiting"
    )
    health_check_period_s: float = Field(default=2.0, gt=0, description="seconds between health checks of a replica")
    pip: tuple[str, ...] = Field(
        default=(),
        description="packages of replicas alone, installed by Ray when they start; as text, separated by commas",
    )

    py_executable: str | None = Field(
        default=None, description="what Ray starts a replica with in Python's place; none: Python, or that of its pip"
    )

    @field_validator("options", mode="before")
    @classmethod
    def _options_from_text(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f'is no JSON object ({error}); pass one, such as {{"weights": [1, 0]}}') from error

    @field_validator("pip", mode="before")
    @classmethod
    def _packages_from_text(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> RewardAppOptions:
        if self.max_ongoing_requests < self.max_batch_requests:
            raise ValueError(
                f"max_ongoing_requests {self.max_ongoing_requests} keeps batches below max_batch_requests "
                f"{self.max_batch_requests}; pass at least as many"
            )
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if self.max_replicas is None and self.min_replicas > 1:
            raise ValueError(
                f"min_replicas {self.min_replicas} needs max_replicas too; for a fixed number pass num_replicas"
            )
        for name in RESERVED:
            if name in self.options:
                raise ValueError(f"options: '{name}' has an option of its own; pass {name} beside options")
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

    def deployment_options(self) -> dict[str, Any]:
        """What Serve is told: replicas, resources, queues. `user_config` stays empty until weights are swapped."""
        threads = str(self.num_threads)
        # Threads that wait by spinning starve those they wait for when cores are shared: passive waiting made scoring
        # on two threads ten times faster on a busy two-core machine, and costs nothing that shows on an idle one.
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        runtime_env: dict[str, Any] = {"env_vars": variables}
        if self.pip:
            runtime_env["pip"] = list(self.pip)
        elif self.py_executable:
            runtime_env["py_executable"] = self.py_executable
        return {
            "max_ongoing_requests": self.max_ongoing_requests,
            "health_check_period_s": self.health_check_period_s,
            "graceful_shutdown_timeout_s": 5.0,
            "graceful_shutdown_wait_loop_s": 0.2,
            "max_constructor_retry_count": 2,
            "ray_actor_options": {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "runtime_env": runtime_env,
                **({"label_selector": self.node_labels} if self.node_labels else {}),
            },
            "user_config": {},
            **self._replicas(),
        }

    def _replicas(self) -> dict[str, Any]:
        if self.max_replicas is None:
            return {"num_replicas": self.num_replicas}
        together = min(self.max_batch_requests, self.max_ongoing_requests // 2 or 1)
        return {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "initial_replicas": min(max(self.num_replicas, self.min_replicas), self.max_replicas),
                "target_ongoing_requests": self.target_ongoing_requests or 2 * together,
                "upscale_delay_s": self.upscale_delay_s,
                "downscale_delay_s": self.downscale_delay_s,
            }
        }
