"""One of two rewards is no number now and then, and its whole application is gone for a while; the run waits for it."""

import io
import json
import re
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from rayjobs.options import JobOptions
from rayjobs.rewards import reward_plans
from rayjobs.runtime import checkpoints
from rayjobs.runtime.driver import run
from rayjobs.runtime.rewards import app_options
from tests import runs
from tests.again import again
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures

AWAY_S = 20.0


@dataclass(frozen=True)
class Left:
    """What the run left, and what it said."""

    options: JobOptions
    folder: Path
    away_s: float
    out: str
    err: str


@pytest.fixture(scope="module")
def patchy(models: Models, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A run with two rewards and one that is only watched; the second one fails, and is away for a while."""
    place = tmp_path_factory.mktemp("rewards")
    folder, settings = place / "patchy", place / "rewards.yaml"
    settings.write_text("Brightness: {num_threads: 1, options: {channel: 1}}\n")
    options = runs.options(
        models, folder, reward="clip:1.0,tests.own_rewards:Patchy:0.5", reward_model=f"clip={models.clip}",
        reward_config=settings, watch="tests.own_rewards:Brightness", num_rollout_actors=2, checkpointing_steps=1,
        checkpoints_total_limit=9, max_failed_share=0.9, skip_evaluation=None, eval_prompts=12, eval_other_prompts=6,
        eval_steps=2, validation_steps=4, validation_prompts=6,
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

    out, err = io.StringIO(), io.StringIO()
    saboteur = runs.Saboteur(folder, [(2, take_away)])
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run(options)
    finally:
        print(err.getvalue())
    saboteur.finish()
    return Left(options, folder, times[1] - times[0], out.getvalue(), err.getvalue())


def test_a_reward_that_is_gone_for_a_while_costs_time(patchy: Left) -> None:
    assert patchy.away_s > AWAY_S
    runs.check_whole(patchy.folder)
    assert "'reward-patchy-Patchy' is not on Serve any more; scoring waits for it, 120 s at most" in patchy.err
    assert "'reward-patchy-Patchy' has all its replicas again" in patchy.err
    assert max(row["seconds"] for row in runs.read_metrics(patchy.folder)) > AWAY_S / 2  # an update that waited


def test_a_reward_that_fails_costs_its_prompts_and_changes_nothing_else(patchy: Left, models: Models) -> None:
    """Every update again, from the weights that its rollouts had.

    The same prompts are dropped, for the same reason, and every number of the row is the same bit for bit, whoever
    rolled it out and whatever was away meanwhile.
    """
    found = runs.curve(patchy.folder)
    dropped = [
        (update, *entry)
        for update, told in re.findall(r"update (\d+): \d+ prompts could not be scored \((.*?)\) and were", patchy.err)
        for entry in re.findall(r"slot (\d+): ([^,]+)", told)
    ]
    expected_dropped: list[tuple[str, str, str]] = []
    rows: list[dict[str, Any]] = []
    fresh = ray.remote(again).options(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    for update, row in enumerate(ray.get(fresh.remote(patchy.options, models, patchy.folder))):
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
    # A checkpoint has what later rollouts are standardised by.
    state, kept = checkpoints.read(checkpoints.listed(patchy.folder / "checkpoints")[1])
    assert [row["reward_clip_mean"] for row in kept] == [row["reward_clip_mean"] for row in found[: state.update]]


def test_every_reward_is_evaluated_in_its_own_unit_and_a_watched_one_only_there(patchy: Left) -> None:
    folder = patchy.folder
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("reward", "reward_clip", "reward_Patchy", "reward_Brightness"):
        assert name in summary["metrics"]
    assert summary["rewards"]["Brightness"] == {"weight": None, "watched": True}
    evaluated = pq.read_table(folder / "evaluation.parquet").to_pylist()
    assert all(row["reward_Brightness"] is not None for row in evaluated)
    assert all((row["reward"] is None) == (row["reward_Patchy"] is None) for row in evaluated)
    base = [row["reward"] for row in evaluated if row["phase"] == "before" and row["reward"] is not None]
    assert np.mean(base) == pytest.approx(0, abs=0.5)  # the base model's own scale
    assert not [name for name in runs.curve(folder)[0] if "Brightness" in name]
    looks = pq.read_table(folder / "validation.parquet").to_pylist()
    assert looks
    assert {"reward", "reward_clip", "reward_Brightness", "reward_Patchy", "facts"} <= set(looks[0])
    assert "reward Patchy" in patchy.out
    assert "only watched: Brightness" in patchy.out
    config = json.loads((folder / "config.json").read_text())
    assert config["reward_config"]["Brightness"] == {"num_threads": 1, "options": {"channel": 1}}
    assert config["reward"] == "clip:1.0,tests.own_rewards:Patchy:0.5"


def test_the_images_that_are_no_number_are_about_one_in_twenty() -> None:
    from tests.own_rewards import Patchy

    images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 3), np.uint8)
    missing = np.isnan(Patchy()(images, [""] * 4000).values).mean()
    assert 0.04 < missing < 0.06
