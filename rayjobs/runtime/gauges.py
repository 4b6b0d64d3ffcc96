"""A run's newest metrics as Prometheus gauges, through Ray's own exporter."""

from collections.abc import Sequence
from typing import Any

from ray.util.metrics import Gauge

from sharpening.rewards.terms import reward_column

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
    "reward_level": "several rewards together, in standard deviations of the first update's scores",
    "dropped": "prompts dropped in the newest update, because an image of theirs could not be scored",
    "alarm": "1 while the training reward rises and the held-out verifiers fall",
}


BY_REWARD = {
    "rollouts_by_reward": "mean score of the rollouts' images by one of several rewards, in its own unit",
    "held_out_by_reward": "mean score of held-out prompts' images by one reward at the newest look, in its own unit",
}


class RunGauges:
    """Gauges `sharpening_<metric>` with a `run` tag, and of each of several rewards with a `reward` tag.

    Args:
        run: The run's name.
        judging: Names of the rewards where there are several.
        watched: Names of the rewards that are only watched.
    """

    def __init__(self, run: str, judging: Sequence[str] = (), watched: Sequence[str] = ()) -> None:
        self._gauges = {name: Gauge(f"sharpening_{name}", about, ("run",)) for name, about in WATCHED.items()}
        self._by_reward = {
            name: Gauge(f"sharpening_{name}", about, ("run", "reward")) for name, about in BY_REWARD.items()
        }
        for gauge in (*self._gauges.values(), *self._by_reward.values()):
            gauge.set_default_tags({"run": run})
        self._judging, self._watched = judging, watched

    def set(self, row: dict[str, Any]) -> None:
        """Show an update's metrics.

        Args:
            row: The update's row; what it lacks keeps its last value.
        """
        for name, gauge in self._gauges.items():
            if row.get(name) is not None:
                gauge.set(float(row[name]))
        self._show("rollouts_by_reward", {name: row.get(f"{reward_column(name)}_mean") for name in self._judging})
        held_out = {name: row.get(f"held_out_{reward_column(name)}") for name in (*self._judging, *self._watched)}
        self._show("held_out_by_reward", held_out)

    def _show(self, gauge: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is not None:
                self._by_reward[gauge].set(float(value), {"reward": name})
