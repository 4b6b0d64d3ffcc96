"""A run's newest metrics as Prometheus gauges, through Ray's own exporter."""

from typing import Any

from ray.util.metrics import Gauge

WATCHED = {
    "reward": "mean reward of the rollouts' branches",
    "reward_spread": "standard deviation of the reward over a prompt's branches",
    "loss": "mean loss of the update",
    "accuracy": "share of pairs that the policy ranks as the reward does",
    "grad_norm": "gradient norm before clipping",
    "updates_per_second": "updates per second",
    "images_per_second": "images scored per second",
    "seconds_wait": "seconds that the learner waited for experience in the update",
    "seconds_learn": "seconds of forward, backward and optimiser in the update",
    "restarts_rollout": "restarts of rollout actors so far",
    "restarts_learner": "restarts of the learner group so far",
    "update": "newest update",
    "held_out_reward": "mean reward of held-out prompts at the newest look",
    "held_out_facts": "share of facts that hold on held-out prompts at the newest look",
    "alarm": "1 while the training reward rises and the held-out verifiers fall",
}


class RunGauges:
    """Gauges `sharpening_<metric>` with a `run` tag.

    Args:
        run: The run's name.
    """

    def __init__(self, run: str) -> None:
        self._gauges = {name: Gauge(f"sharpening_{name}", about, ("run",)) for name, about in WATCHED.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def set(self, row: dict[str, Any]) -> None:
        """Show an update's metrics.

        Args:
            row: The update's row; what it lacks keeps its last value.
        """
        for name, gauge in self._gauges.items():
            if row.get(name) is not None:
                gauge.set(float(row[name]))
