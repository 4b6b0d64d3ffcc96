"""Several rewards in the plain loop, in a run's accounts, its evaluation and its looks at held-out prompts."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rayjobs.options import RLHFOptions
from rayjobs.runtime.coordinator import Coordinator, CoordinatorSpec
from rayjobs.runtime.evaluation import JUDGE, EvaluationPart, EvaluationTask, draw, results
from rayjobs.runtime.experience import Summary, rollout_row
from rayjobs.runtime.gauges import RunGauges
from rayjobs.runtime.hand_over import HandOver
from rayjobs.runtime.held_out import HeldOut
from rayjobs.runtime.progress import describe
from rayjobs.runtime.report import Report
from sharpening.data.prompts import Stream
from sharpening.data.source import PromptSource
from sharpening.evaluation.files import plain
from sharpening.evaluation.plots import reward_curve
from sharpening.evaluation.run_folder import RunFolder
from sharpening.evaluation.summary import compare_results, read_results
from sharpening.loop import train_in_process
from sharpening.methods.base import Seeds
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.options import SharpeningOptions, TrainingOptions
from sharpening.policies.sdxl import SDXLPolicy
from sharpening.rewards.combined import CombinedScore, Panel
from sharpening.rewards.mix import Mix
from sharpening.rewards.statistics import Moments, before, columns
from sharpening.shapes.benchmark import BenchmarkPrompt
from tests.own_rewards import Brightness, Patchy

PROMPTS = ["a circle", "two squares", "a cross", "a triangle", "b", "c"]
SHARPENING = SharpeningOptions(branches=3, branch_steps=2, rollout_steps=4, timesteps_per_rollout=2)
TRAINING = TrainingOptions(
    updates=4, prompts_per_update=4, rollout_batch_size=2, train_batch_size=8, learning_rate=1e-3, max_failed_share=0.9
)
NAMES = ("red", "green")
WEIGHTS = {"red": 1.0, "green": -0.5}


def two(combine: Any = "sum") -> CombinedScore:
    return CombinedScore({"red": Brightness(0), "green": Patchy(one_in=20)}, Mix(WEIGHTS, combine))


def timeless(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.parametrize("combine", ["sum", "ranks"])
def test_an_update_depends_on_its_weights_and_on_the_rows_before_it(policy: SDXLPolicy, combine: str) -> None:
    """What a run that is resumed has: weights of version 2, and the first two rows out of a JSON file."""
    weights: dict[int, dict] = {}

    def keep(update: int, metrics: dict[str, float]) -> None:
        weights[update + 1] = {name: value.clone() for name, value in policy.trainable_state().items()}

    reference, resumed = policy.frozen_copy(), policy.frozen_copy()
    source, method = PromptSource(PROMPTS), RLHFSharpening(SHARPENING)
    rows = train_in_process(policy, method, two(combine), source, TRAINING, keep)
    file = json.loads(json.dumps(plain(rows[:2])))
    resumed.load_trainable_state(weights[2])
    statistics, stream = before(file, 2, NAMES), Stream(len(source), TRAINING.seed, TRAINING.prompts_per_update)
    score, rewards, dropped, drawn = two(combine).scaled_by(statistics), [], [], 0
    while len(rewards) < TRAINING.prompts_per_update:  # tasks of two, then as many slots as were dropped
        missing = TRAINING.prompts_per_update - len(rewards)
        for first in range(drawn, drawn + missing, 2):
            slots = tuple(range(first, min(first + 2, drawn + missing)))
            batch = source.batch([stream.index(2, slot) for slot in slots])
            found = method.collect(resumed, reference, score, batch, Seeds(TRAINING.seed, 2, slots))
            rewards += found.path_rewards[::2]  # both timesteps of a prompt have the path reward of all
            dropped += found.dropped
        drawn += missing
    assert float(torch.stack(rewards).mean()) == pytest.approx(rows[2]["reward"], rel=1e-6)
    assert len(dropped) == rows[2]["dropped"]
    assert score.seen["red"].count == rows[2]["reward_red_count"]
    assert score.seen["red"].mean == pytest.approx(rows[2]["reward_red_mean"], rel=1e-12)
    assert sum(row["dropped"] for row in rows) > 0  # so the images of dropped prompts were seen, too
    assert sum(row.get("dropped_green_not_finite", 0) for row in rows) == sum(row["dropped"] for row in rows)


def test_what_each_reward_says_is_in_the_metrics(policy: SDXLPolicy) -> None:
    options = replace(TRAINING, updates=2)
    rows = train_in_process(policy, RLHFSharpening(SHARPENING), two(), PromptSource(PROMPTS), options)
    for row in rows:
        images = row["images_scored"]
        assert row["reward_red_count"] == images
        assert row["reward_green_count"] < images or not row["dropped"]
        assert 0 < row["reward_red_mean"] < 100
        assert row["reward_red_std"] > 0
    assert rows[0]["reward_level"] == 0
    shift = [(rows[1][f"reward_{n}_mean"] - rows[0][f"reward_{n}_mean"]) / rows[0][f"reward_{n}_std"] for n in NAMES]
    assert rows[1]["reward_level"] == pytest.approx(shift[0] - 0.5 * shift[1], rel=1e-9)
    said = describe("training", rows[1] | {"updates_per_second": 1.0})
    assert said.startswith(f", rewards {rows[1]['reward_level']:+.2f}, loss")


def test_a_single_reward_leaves_the_rows_it_always_left(policy: SDXLPolicy) -> None:
    other = policy.frozen_copy()
    options = replace(TRAINING, updates=1)
    (row,) = train_in_process(policy, RLHFSharpening(SHARPENING), Brightness(), PromptSource(PROMPTS), options)
    assert not [name for name in row if name.startswith(("reward_level", "dropped_"))]
    # Twice the reward is twice the numbers, on the same images; nothing is standardised.
    doubled = CombinedScore({"red": Brightness()}, Mix({"red": 2.0}))
    (twice,) = train_in_process(other, RLHFSharpening(SHARPENING), doubled, PromptSource(PROMPTS), options)
    assert twice["reward"] == pytest.approx(2 * row["reward"], rel=1e-6)
    assert twice["loss"] == row["loss"]
    assert twice["reward_level"] == pytest.approx(2 * twice["reward_red_mean"])


def summary(first: int, dropped: tuple[tuple[int, str], ...] = ()) -> Summary:
    rewards = np.arange(first, first + 4.0).reshape(2, 2)
    scored = {"red": Moments.of(rewards), "green": Moments.of(-rewards)}
    return Summary(2, 2, list(dropped), rewards, {}, {}, {}, 4, scored=scored)


def test_the_row_of_an_update_does_not_depend_on_who_was_faster() -> None:
    rows = []
    for order in ((0, 1), (1, 0)):
        hand_over = HandOver(lambda update, slot: slot, 4, 2, 0, 1, 0.5)
        tasks = [hand_over.take({0}.__contains__) for _ in range(2)]
        for place in order:
            task = tasks[place]
            assert task is not None
            hand_over.deliver(task, "e", summary(10 * place))
        rows.append(rollout_row(hand_over.summaries(0), actors=1))
    assert rows[0] == rows[1]
    both = np.concatenate([np.arange(4.0), np.arange(10, 14.0)])
    assert rows[0]["reward_red_mean"] == pytest.approx(both.mean())
    assert rows[0]["reward_green_std"] == pytest.approx(both.std())
    assert rows[0]["dropped"] == 0
    lost = rollout_row([summary(0, ((3, "green: not finite"), (4, "red: timeout"))), summary(9)], actors=1)
    assert (lost["dropped"], lost["dropped_green_not_finite"], lost["dropped_red_timeout"]) == (2, 1, 1)


def test_a_coordinator_standardises_by_the_updates_before_a_version(tmp_path: Path) -> None:
    spec = CoordinatorSpec("r", str(tmp_path), 6, 0, 4, 2, 1, 9, 0.5, Mix(WEIGHTS))
    coordinator = Coordinator(spec)
    rows = [{"update": u, **columns({n: Moments.of([u, u + 1.0 + i]) for i, n in enumerate(NAMES)})} for u in range(4)]
    for row in rows:
        coordinator._metrics.append(row)
    for version in (3, 2, 3, 0):  # rollouts that lag behind ask for older versions
        assert coordinator._statistics(version) == before(rows, version, NAMES)
    # The learner group starts again at update 1: what was seen later is forgotten until it is seen again.
    assert coordinator._statistics(1) == before(rows, 1, NAMES)
    asyncio.run(coordinator.begin(1, {}, rows[:1]))
    assert coordinator._statistics(3) == before(rows[:1], 3, NAMES)
    alone = Coordinator(CoordinatorSpec("r", str(tmp_path / "alone"), 6, 0, 4, 2, 1, 9, 0.5))
    assert alone._statistics(3) == {}


# -- evaluation ------------------------------------------------------------------------------------------------------


def report(folder: Path, **changes: Any) -> tuple[Report, RunFolder, RLHFOptions]:
    options = RLHFOptions(
        reward="clip:1,tests.own_rewards:Brightness:-0.5", watch="embedded-aesthetic", eval_prompts=12,
        eval_other_prompts=6, eval_guidance_scales=(1.0, 3.0), resolution=64, **changes,
    )  # fmt: skip
    run_folder = RunFolder(folder) if (folder / "config.json").exists() else RunFolder.create(folder, {})
    return Report(options, run_folder), run_folder, options


def found(asked: Report, clip: Callable[[int, float], float | None]) -> list[EvaluationPart]:
    """Answers in which CLIP's score of each prompt is a function of its place and of the guidance scale."""
    parts = []
    for task in asked.tasks:
        scores = [clip(index, task.guidance_scale) for index in task.indices]
        own = {
            "clip": scores, "Brightness": [0.1 * index for index in task.indices],
            "embedded-aesthetic": [float(index % 2) for index in task.indices],
        }  # fmt: skip
        rewards: list[float | None] = [None if score is None else 0.0 for score in scores]
        parts.append(EvaluationPart(replace(task, keep=frozenset()), rewards, [(True,)] * len(scores), parts=own))
    return parts


def test_the_headline_is_on_the_scale_of_the_base_model(tmp_path: Path) -> None:
    asked, folder, _ = report(tmp_path)
    lost = asked.tasks[0].indices[3]
    asked.take("before", found(asked, lambda i, w: None if i == lost else float(i) + 10 * w))
    asked.take("after", found(asked, lambda i, w: float(i) + 10 * w + 5))
    at_one = [row for row in asked.before if row.guidance_scale == 1]
    known = {n: np.array([r.parts[n] for r in at_one if r.parts[n] is not None]) for n in ("clip", "Brightness")}
    for row in (*asked.before, *asked.after):  # also at the other guidance scale
        if row.parts["clip"] is None:
            assert row.reward is None
            continue
        z = {n: (row.parts[n] - values.mean()) / values.std() for n, values in known.items()}  # type: ignore[operator]
        assert row.reward == pytest.approx(z["clip"] - 0.5 * z["Brightness"], rel=1e-9)
    gain = 5 / known["clip"].std()
    compared = compare_results([*asked.before, *asked.after], 1.0)
    assert compared["reward"].difference.mean == pytest.approx(gain)
    assert compared["reward_clip"].difference.mean == pytest.approx(5)
    assert compared["reward_clip"].prompts == 11
    assert compared["reward_embedded_aesthetic"].difference.mean == 0
    assert list(compared)[:5] == ["reward", "reward_clip", "reward_Brightness", "reward_embedded_aesthetic", "facts"]

    row = {
        "update": 0, "seconds": 1.0, "loss": 0.7, "reward": 0.0, "reward_level": 0.0,
        **columns({"clip": Moments(4, 50.0, 4.0), "Brightness": Moments(4, 1.0, 4.0)}),
    }  # fmt: skip
    folder.metrics().append(row)
    table = asked.finish(1, 2.0)
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert sum(line.startswith("reward clip ") for line in lines) == 2  # at both guidance scales
    assert sum(line.startswith("reward embedded aesthetic ") for line in lines) == 2
    legend = "reward: clip - 0.5 · Brightness, each in standard deviations of the base model's scores"
    assert lines[-1].startswith(legend)
    assert lines[-1].endswith("only watched: embedded-aesthetic")
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["metrics"]["reward_clip"]["difference"]["mean"] == pytest.approx(5)
    assert told["rewards"]["Brightness"] == {"weight": -0.5, "watched": False}
    assert told["rewards"]["embedded-aesthetic"] == {"weight": None, "watched": True}
    assert (tmp_path / "reward_curve.png").stat().st_size > 0

    # A run that goes on finds the base model's evaluation, and with it the scale.
    again, _, _ = report(tmp_path)
    assert again.before == asked.before
    probe = EvaluationPart(asked.tasks[0], [0.0, None], [], parts={"clip": [1.0, None], "Brightness": [2.0, 3.0]})
    assert again.headline(probe) == asked.headline(probe)
    assert again.headline(probe)[1] is None
    # With another reward to watch, it has to be evaluated again.
    (tmp_path / "more").mkdir()
    assert Report(again._options.model_copy(update={"watch": "embedded-preference"}), folder).before == []
    columns_ = pq.read_table(tmp_path / "evaluation.parquet").column_names
    assert columns_[-3:] == ["reward_clip", "reward_Brightness", "reward_embedded_aesthetic"]
    assert read_results(pq.read_table(tmp_path / "evaluation.parquet").to_pylist(), again._parts)[0] == asked.before[0]


def test_images_are_judged_by_every_reward_and_watched_ones_spoil_nothing(policy: SDXLPolicy) -> None:
    asked = [BenchmarkPrompt(text, "colour", ()) for text in PROMPTS]
    task = EvaluationTask(tuple(range(len(asked))), tuple(asked), 1.0, 2, False)
    method = RLHFSharpening(SHARPENING)
    score = CombinedScore({"red": Brightness(0), "green": Brightness(1)}, Mix(WEIGHTS))
    panel = Panel({JUDGE: score, "seen": Patchy(2)})
    part = draw(policy, method, panel, task, 0)
    assert list(part.parts) == ["red", "green", "seen"]
    assert None not in part.rewards
    assert None in part.parts["seen"]
    alone = draw(policy, method, Panel({JUDGE: Brightness(1)}), task, 0)
    assert alone.rewards == part.parts["green"]
    assert alone.parts == {}
    assert results([part], "before")[2].parts == {name: values[2] for name, values in part.parts.items()}


def test_looks_tell_of_every_reward_and_alarm_by_the_level(tmp_path: Path) -> None:
    options = RLHFOptions(
        reward="clip:1,tests.own_rewards:Brightness", watch="embedded-aesthetic", validation_steps=2,
        validation_prompts=6, max_train_steps=60,
    )  # fmt: skip
    held_out = HeldOut(options, tmp_path, lambda part: [7.0] * len(part.rewards))
    asked = len(held_out.tasks[0].indices)
    for look in range(16):
        facts = (True,) * (9 - look // 2) + (False,) * (1 + look // 2)
        own: dict[str, list[float | None]] = {
            "clip": [50.0] * (asked - 1) + [None], "Brightness": [3.0] * asked, "embedded-aesthetic": [None] * asked,
        }  # fmt: skip
        part = EvaluationPart(held_out.tasks[0], [0.1] * asked, [facts] * asked, version=2 * look, parts=own)
        held_out.take([part], {"reward": 0.0, "reward_level": float(look)})
    table = pq.read_table(tmp_path / "validation.parquet").to_pydict()
    assert table["reward"] == [7.0] * 16
    assert table["reward_clip"] == [50.0] * 16
    assert table["reward_embedded_aesthetic"] == [None] * 16
    assert table["training_reward"] == [float(look) for look in range(16)]
    assert table["alarm"][-1] is True  # the combined reward, standardised as it goes, has not moved
    gauges = held_out.gauges()
    assert gauges["held_out_reward_clip"] == 50.0
    # What an earlier start of the run found stays when it goes on.
    later = HeldOut(options, tmp_path, lambda part: [8.0] * len(part.rewards))
    later.take([replace(part, version=20)], {"reward_level": 20.0})
    assert pq.read_table(tmp_path / "validation.parquet")["update"].to_pylist() == [*range(0, 20, 2), 20]

    shown: list[tuple[float, dict | None]] = []
    run_gauges = RunGauges("r", ("clip", "Brightness"), ("embedded-aesthetic",))
    for gauge in run_gauges._by_reward.values():
        gauge.set = lambda value, tags=None: shown.append((value, tags))  # type: ignore[method-assign]
    run_gauges.set(gauges)
    run_gauges.set({"reward_clip_mean": 51.0, "reward_level": 0.5})
    assert shown == [(50.0, {"reward": "clip"}), (3.0, {"reward": "Brightness"}), (51.0, {"reward": "clip"})]


def test_the_curve_of_several_rewards_is_drawn() -> None:
    rows = [
        {
            "update": u, "loss": 0.7, "reward": 0.0, "reward_level": u * 0.1,
            **columns({"red": Moments(4, 50.0 + u, 4.0), "green": Moments(4, 1.0, 0.0 if u == 0 else 2.0)}),
        }
        for u in range(5)
    ]  # fmt: skip
    looks = [{"update": 2, "reward": 0.2, "alarm": True}]
    drawn = reward_curve(rows, "two", looks, NAMES)
    assert drawn.startswith(b"\x89PNG")
    assert drawn != reward_curve(rows, "two", looks)
