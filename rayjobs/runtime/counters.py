"""What a run counts for Prometheus beside its newest metrics (`rayjobs.runtime.gauges`): sums, and numbers by label.

Names follow Prometheus' conventions: units in the name, counters that only rise. Ray's exporter puts `ray_` before
every name and `_total` behind a counter's.

Ray exports a gauge only in intervals in which it was set: what has not changed must be set again, or the series ends.
"""

from collections import Counter as Tally
from typing import Any

from ray.util.metrics import Counter, Gauge

from rayjobs.runtime.experience import Summary
from rayjobs.runtime.hand_over import Depth
from rayjobs.runtime.labels import label

# name: (labels beside `run`, help)
COUNTERS: dict[str, tuple[tuple[str, ...], str]] = {
    "updates_made": ((), "updates made, those that a restart made again included"),
    "nfe": (("stage",), "network evaluations: calls of the denoiser times images"),
    "images_scored": ((), "images sent to the reward by rollouts"),
    "dropped_prompts": (("reason",), "prompts dropped with all their groups because an image could not be scored"),
    "stage_seconds": (("stage",), "process-seconds by stage: two actors that generate for a minute make 120"),
}
GAUGES: dict[str, tuple[tuple[str, ...], str]] = {
    "updates_planned": ((), "updates in the whole run"),
    "staleness_updates": ((), "updates by which the weights of the newest update's rollouts lagged behind the learner"),
    "queue_depth_tasks": (("state",), "rollout tasks by state: waiting, running, or done and not yet learnt from"),
    "publish_seconds": ((), "seconds that the newest weights took from the optimiser's step until they were packed"),
    "peak_memory_bytes": (("role",), "largest resident set (role_gpu: GPU memory) of a process of the role so far"),
}
LEARNER_STAGES = ("wait", "learn", "publish")


class RunCounters:
    """Counters and labelled gauges `sharpening_<name>` with a `run` label. Not for several threads.

    Args:
        run: The run's name.
        updates: Updates in the whole run.
    """

    def __init__(self, run: str, updates: int) -> None:
        self._counters = {n: Counter(f"sharpening_{n}", about, ("run", *tags)) for n, (tags, about) in COUNTERS.items()}
        self._gauges = {n: Gauge(f"sharpening_{n}", about, ("run", *tags)) for n, (tags, about) in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags({"run": run})
        self._held: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._set("updates_planned", updates)

    def rollout(self, summary: Summary) -> None:
        """Count a rollout task, also one that comes too late to be learnt from.

        Args:
            summary: What it told.
        """
        for stage, evaluations in summary.nfe.items():
            self._count("nfe", evaluations, stage=stage)
        for stage, spent in summary.seconds.items():
            self._count("stage_seconds", spent, stage=stage)
        for reason, dropped in Tally(reason for _, reason in summary.dropped).items():
            self._count("dropped_prompts", dropped, reason=reason)
        self._count("images_scored", summary.images_scored)
        self._peak("rollout", summary.peak_memory)
        self._peak("rollout_gpu", summary.peak_gpu_memory)

    def asked(self, method: str, results: list[Any]) -> None:
        """Count what actors did beside rollouts.

        Args:
            method: Name of the actors' method.
            results: What the calls gave; those that evaluated the network say how often.
        """
        stage = "evaluate" if method == "evaluate" else "rank"
        self._count("nfe", sum(getattr(result, "nfe", 0) for result in results), stage=stage)

    def update(self, row: dict[str, Any]) -> None:
        """Count an update.

        Args:
            row: Its metrics.
        """
        self._count("updates_made", 1)
        self._count("nfe", row.get("nfe_learn", 0), stage="learn")
        for stage in LEARNER_STAGES:
            self._count("stage_seconds", row.get(f"seconds_{stage}", 0), stage=stage)
        for role in ("learner", "learner_gpu"):
            self._peak(role, row.get(f"peak_memory_{role}", 0))
        self._set("staleness_updates", row["update"] - row["version"])
        if row.get("seconds_publish") is not None:
            self._set("publish_seconds", row["seconds_publish"])

    def queue(self, depth: Depth) -> None:
        """Show how full the hand-over is.

        Args:
            depth: Tasks by state.
        """
        for state in ("waiting", "running", "done"):
            self._set("queue_depth_tasks", getattr(depth, state), state=state)

    def refresh(self) -> None:
        """Set every gauge again, so that Ray goes on exporting it."""
        for (name, labels), value in self._held.items():
            self._gauges[name].set(value, dict(labels) or None)

    def _count(self, name: str, value: float, **labels: str) -> None:
        if value > 0:  # Ray's counters refuse zero
            self._counters[name].inc(value, {key: label(text) for key, text in labels.items()} or None)

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._held[name, tuple(labels.items())] = value  # labels of our own, which are ASCII
        self._gauges[name].set(value, labels or None)

    def _peak(self, role: str, peak: float) -> None:
        if peak > self._held.get(("peak_memory_bytes", (("role", role),)), 0):
            self._set("peak_memory_bytes", peak, role=role)


def exported() -> dict[str, tuple[str, ...]]:
    """What a run exports.

    Returns:
        Labels by name, as Prometheus has them.
    """
    from rayjobs.runtime.gauges import BY_REWARD, WATCHED

    plain: dict[str, tuple[str, ...]] = {f"ray_sharpening_{name}": ("run",) for name in WATCHED}
    plain |= {f"ray_sharpening_{name}": ("run", "reward") for name in BY_REWARD}
    counters = {f"ray_sharpening_{name}_total": ("run", *tags) for name, (tags, _) in COUNTERS.items()}
    return plain | counters | {f"ray_sharpening_{name}": ("run", *tags) for name, (tags, _) in GAUGES.items()}
