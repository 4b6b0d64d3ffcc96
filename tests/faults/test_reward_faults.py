"""One of two rewards is no number now and then, and its whole application is gone for a while; the run waits for it."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rayjobs.rewards import reward_plans
from rayjobs.runtime.driver import run
from rayjobs.runtime.rewards import app_options
from tests import runs
from tests.again import again
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures

AWAY_S = 20.0


def test_a_reward_that_fails_and_one_that_is_gone_cost_prompts_and_time(
    models: Models, local_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "patchy"
    options = runs.options(
        models, folder, reward="clip:1.0,tests.own_rewards:Patchy:0.5", reward_model=f"clip={models.clip}",
        num_rollout_actors=2, checkpointing_steps=1, checkpoints_total_limit=9, max_failed_share=0.9,
    )  # fmt: skip
    times: list[float] = []

    def take_away() -> None:
        from reward_servers.applications import start_reward_app, stop_reward_app

        name = f"reward-{folder.name}-Patchy"
        stop_reward_app(name)
        times.append(time.monotonic())
        made = len(runs.read_metrics(folder))
        time.sleep(AWAY_S)
        assert len(runs.read_metrics(folder)) <= made + 1  # what was scored by then is learnt from; nothing else is
        (plan,) = [plan for plan in reward_plans(options) if plan.name == "Patchy"]
        start_reward_app(app_options(plan, name, 0.1, 0.0))
        times.append(time.monotonic())

    saboteur = runs.Saboteur(folder, [(2, take_away)])
    run(options)
    saboteur.finish()
    assert times[1] - times[0] > AWAY_S
    runs.check_whole(folder)
    said = capfd.readouterr().err
    assert re.search(r"'reward-patchy-Patchy' is not on Serve any more; scoring waits for it, 120 s at most", said)
    assert re.search(r"'reward-patchy-Patchy' has all its replicas again", said)
    assert max(row["seconds"] for row in runs.read_metrics(folder)) > AWAY_S / 2  # an update that waited

    # Every update again, from the weights that its rollouts had: the same prompts are dropped, for the same reason, and
    # every number of the row is the same bit for bit, whoever rolled it out and whatever was away meanwhile.
    found = runs.curve(folder)
    dropped = [
        (update, *entry)
        for update, told in re.findall(r"update (\d+): \d+ prompts could not be scored \((.*?)\) and were", said)
        for entry in re.findall(r"slot (\d+): ([^,]+)", told)
    ]
    expected_dropped: list[tuple[str, str, str]] = []
    rows: list[dict[str, Any]] = []
    fresh = ray.remote(again).options(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    for update, row in enumerate(ray.get(fresh.remote(options, models, folder))):
        rows.append(row)
        expected_dropped += [(str(update), str(slot), reason) for slot, reason in row.pop("slots")]
        told = found[update]
        assert row.items() <= told.items(), {n: (row[n], told.get(n)) for n in row if row[n] != told.get(n)}
        assert told["dropped"] == told.get("dropped_Patchy_not_finite", 0)
        lost = told["images_scored"] - told["reward_Patchy_count"]
        assert lost >= told["dropped"]
        assert told["reward_clip_count"] == told["images_scored"]
    assert dropped == expected_dropped
    assert sum(told["images_scored"] - told["reward_Patchy_count"] for told in found) > 0
    assert 0 < len(dropped) < 0.5 * 4 * runs.UPDATES


def test_the_images_that_are_no_number_are_about_one_in_twenty() -> None:
    from tests.own_rewards import Patchy

    images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 3), np.uint8)
    missing = np.isnan(Patchy()(images, [""] * 4000).values).mean()
    assert 0.04 < missing < 0.06
