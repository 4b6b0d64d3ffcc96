"""What a run counts, as Prometheus would scrape it from Ray's own exporter."""

import numpy as np
import ray

from rayjobs.runtime.counters import exported
from tests import runs
from tests.runs import local_ray
from tests.scraping import Samples, scrape

__all__ = ["local_ray"]  # fixture


@ray.remote(num_cpus=0)
class Counting:
    """Holds the metrics as a run's coordinator does."""

    def __init__(self, run: str) -> None:
        from rayjobs.runtime.counters import RunCounters
        from rayjobs.runtime.gauges import WATCHED, RunGauges

        self._gauges, self._counters = RunGauges(run, ("clip",)), RunCounters(run, 9)
        self._row = {name: float(number) for number, name in enumerate(WATCHED, start=1)}
        self._row |= {"reward_clip_mean": 70.5, "held_out_reward_clip": 60.5}

    def count(self) -> None:
        """Two rollouts with three dropped prompts, an evaluation, an update."""
        from types import SimpleNamespace

        from rayjobs.runtime.experience import Summary
        from rayjobs.runtime.hand_over import Depth

        none = np.zeros((0, 2))
        spent, nfe = {"generate": 1.5}, {"rollout": 10, "reference": 0}
        for dropped in ([(0, "not finite"), (1, "rejeté")], [(2, "rejeté")]):
            self._counters.rollout(Summary(0, 0, dropped, none, {}, spent, nfe, 6, peak_memory=2**20))
        self._counters.asked("evaluate", [SimpleNamespace(nfe=7), "a folder"])
        self._counters.update(
            {"update": 5, "version": 4, "nfe_learn": 3, "seconds_learn": 0.5, "seconds_publish": 0.25}
        )
        self._counters.queue(Depth(3, 2, 1))

    def refresh(self) -> None:
        """Set what holds."""
        self._gauges.set(self._row)
        self._counters.refresh()


def test_prometheus_gets_every_metric_with_its_labels(local_ray: None) -> None:
    counting = Counting.remote("exported")  # type: ignore[attr-defined]
    ray.get(counting.count.remote())

    def complete() -> Samples | None:
        ray.get(counting.refresh.remote())
        found = scrape("exported")
        return found if found.keys() == exported().keys() else None

    found = runs.wait_for(complete, "all metrics")

    def of(name: str, **labels: str) -> float:
        return found[f"ray_sharpening_{name}"][frozenset(labels.items())]

    assert of("nfe_total", stage="rollout") == 20
    assert of("nfe_total", stage="evaluate") == 7
    assert of("nfe_total", stage="learn") == 3
    assert len(found["ray_sharpening_nfe_total"]) == 3  # a stage that did nothing is not there
    assert of("dropped_prompts_total", reason="rejet%C3%A9") == 2
    assert of("dropped_prompts_total", reason="not finite") == 1
    assert of("stage_seconds_total", stage="generate") == 3
    assert of("stage_seconds_total", stage="learn") == 0.5
    assert of("images_scored_total") == 12
    assert of("updates_made_total") == 1
    assert of("updates_planned") == 9
    assert of("staleness_updates") == 1
    assert of("publish_seconds") == 0.25
    assert [of("queue_depth_tasks", state=state) for state in ("waiting", "running", "done")] == [3, 2, 1]
    assert of("peak_memory_bytes", role="rollout") == 2**20
    assert of("reward") == 1
    assert of("rollouts_by_reward", reward="clip") == 70.5
    assert of("held_out_by_reward", reward="clip") == 60.5
    ray.kill(counting)
