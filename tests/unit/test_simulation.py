"""The simulated run against what can be worked out on paper."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayjobs import capacity
from rayjobs.simulation.calibration import of_rows
from rayjobs.simulation.events import Clock, Line, Station
from rayjobs.simulation.model import Outcome, simulate
from rayjobs.simulation.routing import Handle
from rayjobs.simulation.stages import Layout, Stages, scaled

STAGES = Stages(
    prompts_per_update=24, rollout_batch_size=4, images_per_prompt=10, num_learners=1, before_reward=1.0, reward=0.25,
    after_reward=0.5, hand_over=0.125, coordinator=0.0, learn=2.0, publish=0.25, finish=0.125,
)  # fmt: skip
TASK, LEARNER = 1.0 + 0.25 + 0.5 + 0.125, 2.0 + 0.25 + 0.125
LAYOUT = Layout(
    actors=1, reward_replicas=1, reward_concurrency=99, learners=1, staleness=0, prompts_per_update=24,
    rollout_batch_size=4, checkpointing_steps=1000,
)  # fmt: skip


def laid_out(stages: Stages = STAGES, **changes: Any) -> Outcome:
    return simulate(stages, replace(LAYOUT, **changes), updates=24)


# -- events ------------------------------------------------------------------------------------------------------------


def everything(clock: Clock) -> None:
    clock.run(lambda: False)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_server_waits_as_the_formula_of_pollaczek_and_khinchine_says(load: float) -> None:
    clock, random = Clock(), np.random.default_rng(0)
    station, waits = Station(clock, 1), []
    moments = np.cumsum(random.exponential(1 / load, 20_000))  # one second of service each
    for moment in moments:
        clock.after(moment, lambda: station.serve(1.0, waits.append))
    everything(clock)
    assert np.mean(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.08)  # M/D/1
    assert station.busy == pytest.approx(len(moments))
    assert station.busy / clock.now == pytest.approx(load, rel=0.02)
    assert station.waited == pytest.approx(sum(waits))


def test_servers_are_taken_first_come_first_served() -> None:
    clock, ended = Clock(), {}
    station = Station(clock, 2)
    for name, seconds in (("a", 3.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)):
        station.serve(seconds, lambda waited, name=name: ended.update({name: (clock.now, waited)}))
    everything(clock)
    assert ended == {"b": (1.0, 0.0), "c": (2.0, 1.0), "a": (3.0, 0.0), "d": (3.0, 2.0)}


def test_a_line_is_shared_equally() -> None:
    clock, ended = Clock(), {}
    line = Line(clock, bandwidth=10.0)

    def send(name: str, size: float) -> None:
        line.send(size, lambda: ended.update({name: clock.now}))

    send("a", 30.0)
    clock.after(1.0, lambda: send("b", 30.0))  # a has 20 left: both at 5 a second until a is there, at 5
    clock.after(20.0, lambda: send("c", 10.0))
    everything(clock)
    assert ended == pytest.approx({"a": 5.0, "b": 6.0, "c": 21.0})  # b had 10 left at 5, then all of the line
    assert line.busy == pytest.approx(7.0)


@pytest.mark.parametrize("together", [1, 2, 7])
def test_equal_transfers_arrive_together(together: int) -> None:
    clock, ended = Clock(), []
    line = Line(clock, bandwidth=3.0)
    for _ in range(together):
        line.send(1.0, lambda: ended.append(clock.now))
    everything(clock)
    assert ended == pytest.approx([together / 3.0] * together)


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actors", [1, 2, 3, 4, 6, 9])
def test_synchronous_is_the_sum_of_the_stages(actors: int) -> None:
    found = laid_out(actors=actors)
    rounds = math.ceil(6 / actors)
    update = rounds * TASK + LEARNER
    assert found.seconds_per_update == pytest.approx(update)
    assert found.images_per_second == pytest.approx(240 / update)
    assert found.learner_wait == pytest.approx(rounds * TASK / update)
    assert found.busy["learner"] == pytest.approx(LEARNER / update)
    assert found.busy["rollout"] == pytest.approx(6 * TASK / actors / update)
    assert found.actor_idle == pytest.approx(1 - 6 * TASK / actors / update)
    assert found.staleness == 0


@pytest.mark.parametrize("actors", [1, 2, 3, 6])
def test_one_update_of_staleness_overlaps_rollouts_with_learning(actors: int) -> None:
    found = laid_out(actors=actors, staleness=1)
    assert found.seconds_per_update == pytest.approx(max(6 / actors * TASK, LEARNER), rel=0.02)
    assert found.staleness == 1


def test_speed_stays_below_both_bounds_and_grows_with_staleness() -> None:
    for actors in (1, 2, 4, 5, 8, 16):
        rates = [1 / laid_out(actors=actors, staleness=staleness).seconds_per_update for staleness in range(4)]
        assert all(rate <= min(actors / (6 * TASK), 1 / LEARNER) * 1.03 for rate in rates)
        assert rates == sorted(rates)
    # Amdahl: with endless actors a synchronous update still takes one task and the learner.
    assert laid_out(actors=64).seconds_per_update == pytest.approx(TASK + LEARNER)


def test_a_reward_with_one_replica_saturates_as_a_closed_loop_does() -> None:
    stages = replace(STAGES, reward=1.0, learn=0.0, publish=0.0, finish=0.0)
    thinking = 1.0 + 0.5 + 0.125
    for actors in (1, 2, 3, 6):
        found = laid_out(stages, actors=actors, staleness=3, reward_concurrency=1)
        tasks_a_second = 6 / found.seconds_per_update
        assert tasks_a_second == pytest.approx(min(actors / (thinking + 1.0), 1.0), rel=0.04)
    assert found.bottleneck == "reward"
    assert found.busy["reward"] == pytest.approx(1.0, abs=0.02)
    # Little's law: who waits is who neither thinks nor is scored.
    assert found.reward_queue == pytest.approx(6 - 1 - thinking, abs=0.3)


def test_a_replica_that_scores_several_at_a_time_is_as_many_replicas_with_one_queue() -> None:
    stages = replace(STAGES, reward=4.0)
    six = laid_out(stages, actors=6, reward_concurrency=6)
    assert six.seconds_per_update == pytest.approx(TASK + 3.75 + LEARNER)
    assert six.busy["reward"] == pytest.approx(4 / six.seconds_per_update)
    alone = laid_out(stages, actors=6, reward_concurrency=1)
    assert alone.seconds_per_update == pytest.approx(TASK + 6 * 4 - 0.25 + LEARNER)
    assert alone.actor["queue"] * 6 * alone.seconds_per_update == pytest.approx(4 * (1 + 2 + 3 + 4 + 5))


class Pairs:
    """Draws pairs that a test names, in place of a random generator."""

    def __init__(self, *pairs: tuple[int, int]) -> None:
        self._pairs = list(pairs)

    def choice(self, many: int, size: int, replace: bool) -> tuple[int, int]:
        return self._pairs.pop(0)


def test_a_handle_chooses_as_serves_router_does() -> None:
    clock = Clock()
    replicas = [Station(clock, 1) for _ in range(3)]
    replicas[0].serve(100.0, lambda waited: None)  # somebody else's
    handle = Handle(clock, replicas, Pairs((0, 1), (1, 2), (0, 1), (0, 2), (2, 1), (0, 1)), memory=10.0)  # type: ignore[arg-type]
    assert handle.choose() == 1  # both are asked: 1 and 0
    replicas[1].serve(1.0, lambda waited: None)
    handle.sent(1)  # remembers 1 of it
    assert handle.choose() == 1  # it knows 1's length and does not wait for 2's answer, which is 0
    assert handle.choose() == 0  # 1 against 1: the first one drawn
    assert handle.choose() == 2
    handle.done(1)  # 0 again
    assert handle.choose() == 2  # 0 against 0
    clock.after(11.0, lambda: None)
    clock.run(lambda: clock.now >= 11.0)
    assert handle.choose() == 1  # all forgotten and asked again


def test_actors_avoid_one_another_while_they_remember() -> None:
    """Two actors and two replicas; where both choose the same, one waits for all of the other's images."""
    layout = replace(LAYOUT, actors=2, prompts_per_update=8, reward_replicas=2, reward_concurrency=1)
    learner = 2.0 * 8 / 24 + 0.25 + 0.125

    def seconds(reward: float, **changes: Any) -> float:
        return simulate(replace(STAGES, reward=reward, spread=0.01), replace(layout, **changes), 200).seconds_per_update

    free = TASK - 0.25 + 1.5 + learner
    assert seconds(1.5, routing="asked") == pytest.approx(free, rel=0.01)
    assert free < seconds(1.5) < free + 0.5 * 1.5  # in step, they meet now and then
    assert seconds(1.5, staleness=1) == pytest.approx(TASK - 0.25 + 1.5, rel=0.02)  # out of step, hardly ever
    # A replica that is not used for ten seconds is forgotten, and a handle prefers the one that it knows: both stay.
    free = TASK - 0.25 + 5.0 + learner
    assert seconds(5.0, routing="asked") == pytest.approx(free, rel=0.01)
    assert seconds(5.0) == pytest.approx(free + 5.0, rel=0.02)


def test_weights_reach_nodes_over_the_heads_line() -> None:
    stages = replace(STAGES, weights_bytes=8e9, load=0.5)
    network = {"actors_per_node": 1, "bandwidth": 4e9}  # 2 s a copy
    for nodes in (1, 2, 3):
        found = laid_out(stages, actors=nodes, **network)
        rounds = 6 / nodes
        update = 2 * nodes + 0.5 + rounds * TASK + LEARNER + 2  # the learner sends them to the head first
        assert found.seconds_per_update == pytest.approx(update)
        assert found.busy["network"] == pytest.approx(2 * nodes / update)
    for nodes, hops in ((1, 1), (3, 2), (4, 3)):  # with the head, every hop doubles those that have a copy
        tree = laid_out(stages, actors=nodes, tree=True, **network)
        update = 2 * hops + 0.5 + math.ceil(6 / nodes) * TASK + LEARNER + 2
        assert tree.seconds_per_update == pytest.approx(update)
    shared = laid_out(stages, actors=3, actors_per_node=3, bandwidth=4e9)
    assert shared.seconds_per_update == pytest.approx(found.seconds_per_update - 4)  # one node fetches one copy


def test_a_checkpoint_holds_up_the_learner_and_not_the_rollouts() -> None:
    stages = replace(STAGES, checkpoint=1.0)
    synchronous = laid_out(stages, checkpointing_steps=1)  # written while the next update is rolled out
    assert synchronous.seconds_per_update == pytest.approx(6 * TASK + LEARNER)
    overlapped = laid_out(stages, actors=6, staleness=3, checkpointing_steps=1)
    assert overlapped.seconds_per_update == pytest.approx(LEARNER + 1.0, rel=0.02)


def test_the_coordinator_is_one_thread() -> None:
    stages = replace(STAGES, coordinator=0.5)
    found = laid_out(stages, actors=6, staleness=3)
    assert found.seconds_per_update == pytest.approx(6 * 0.5, rel=0.02)
    assert found.bottleneck == "coordinator"


def test_the_same_seed_gives_the_same_run_and_spread_costs_time() -> None:
    stages = replace(STAGES, spread=0.4)
    first, again = laid_out(stages, actors=3), laid_out(stages, actors=3)
    assert first == again
    assert simulate(stages, replace(LAYOUT, actors=3), 24, seed=1) != first
    assert first.seconds_per_update > laid_out(actors=3).seconds_per_update  # the slowest task decides


def test_other_sizes_scale_the_stages() -> None:
    stages = replace(STAGES, gradient_bytes=6e9, experience_bytes=1e9)
    layout = replace(
        LAYOUT, prompts_per_update=48, rollout_batch_size=2, learners=16, learners_per_node=8, bandwidth=1e9
    )
    found = scaled(stages, layout)
    assert (found.before_reward, found.reward, found.after_reward) == (0.5, 0.125, 0.25)
    assert found.publish == stages.publish
    ring, fetch = 2 * 1 / 2 * 6.0, 24 * 0.5 / 2  # two nodes; 24 tasks of half a gigabyte, over two lines
    assert found.learn == pytest.approx(2.0 * 2 / 16 + ring + fetch)


# -- calibration and the job -------------------------------------------------------------------------------------------


def rows(layout: Layout, stages: Stages, updates: int = 12) -> list[dict[str, Any]]:
    """What a run with those stages would write."""
    tasks, rounds = layout.tasks, math.ceil(layout.tasks / layout.actors)
    task = stages.before_reward + stages.reward + stages.after_reward + stages.hand_over
    found = []
    for update in range(updates):
        checkpoint = stages.checkpoint if update and update % layout.checkpointing_steps == 0 else 0.0
        own = {"wait": rounds * task, "learn": stages.learn, "publish": stages.publish}
        found.append(
            {
                "update": update, "images_scored": 240, "seconds": sum(own.values()) + stages.finish + checkpoint,
                **{f"seconds_{name}": value for name, value in own.items()},
                "seconds_generate": 0.75 * stages.before_reward * tasks / layout.actors,
                "seconds_decode": 0.25 * stages.before_reward * tasks / layout.actors,
                "seconds_reward": stages.reward * tasks / layout.actors,
                "seconds_reference": stages.after_reward * tasks / layout.actors,
            }
        )  # fmt: skip
    return found


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_calibration_finds_the_stages_that_made_the_rows(actors: int) -> None:
    stages = replace(STAGES, checkpoint=3.0)
    layout = replace(LAYOUT, actors=actors, reward_replicas=actors, checkpointing_steps=5)
    found, _, notes = of_rows(rows(layout, stages)[1:], layout, weights_bytes=8e9)
    expected = replace(stages, weights_bytes=8e9, gradient_bytes=8e9, coordinator=found.coordinator)
    for name in ("before_reward", "reward", "after_reward", "hand_over", "learn", "publish", "finish", "checkpoint"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert (found.spread, found.images_per_prompt, notes) == (pytest.approx(0.0, abs=1e-9), 10, notes)
    assert len(notes) == (actors > 1)


def test_what_a_run_cannot_tell_is_said() -> None:
    layout = replace(LAYOUT, actors=4, staleness=1, reward_replicas=1)
    found, _, notes = of_rows(rows(layout, STAGES)[1:], layout, weights_bytes=0)
    assert found.hand_over == 0
    assert len(notes) == 2
    assert "overlapped" in notes[0]
    assert "one actor" in notes[1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder, as far as the job reads it."""
    layout = replace(LAYOUT, actors=2)
    values = {
        "method": "rlhf", "num_rollout_actors": 2, "reward_replicas": 2, "num_learners": 1, "staleness": 0,
        "prompts_per_update": 24, "rollout_batch_size": 4, "checkpointing_steps": 10,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(layout, STAGES)))
    return tmp_path


def test_the_job_prints_a_table_and_leaves_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main([str(run), "--actors", "1", "2", "6", "24", "--staleness", "0", "1", "--updates", "12"]) == 0
    said = capsys.readouterr().out
    assert "a task of 4 prompts: 1 s to the images, 0.25 s reward, 0.5 s after it" in said
    assert "as actors are added, first the learner saturates, at 6 actors; more --num_learners help" in said
    assert "--num_rollout_actors 6" in said
    found = json.loads((run / "capacity.json").read_text())
    assert len(found["outcomes"]) == 8
    by = {(o["layout"]["actors"], o["layout"]["staleness"]): o for o in found["outcomes"]}
    assert by[1, 0]["seconds_per_update"] == pytest.approx(6 * TASK + LEARNER, rel=0.01)
    assert by[1, 1]["saturated"] == "rollout"
    assert by[24, 0]["saturated"] == "tasks"
    assert found["recommended"]["layout"]["actors"] == 6
    assert (run / "capacity.png").read_bytes().startswith(b"\x89PNG")


def test_processes_in_proportion(run: Path) -> None:
    flags = [
        "--actors",
        "8",
        "20",
        "--actors_per_replica",
        "8",
        "--actors_per_learner",
        "4",
        "--prompts_per_actor",
        "8",
    ]
    assert capacity.main([str(run), *flags, "--staleness", "1", "--updates", "8"]) == 0
    layouts = [o["layout"] for o in json.loads((run / "capacity.json").read_text())["outcomes"]]
    found = [(x["actors"], x["reward_replicas"], x["learners"], x["prompts_per_update"]) for x in layouts]
    assert found == [(8, 1, 2, 64), (20, 3, 5, 160)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--run: nothing says which run's stage times to use; pass its folder as first argument"),
        (["nowhere"], "--run: cannot read nowhere (No such file or directory); pass a JSON, YAML or TOML file"),
        (["RUN", "--actors", "0"], "--actors: every number must be at least 1, and there must be one"),
        (["RUN", "--actors_per_replica", "8", "--reward_replicas", "2"], "--actors_per_replica: and --reward_replicas"),
        (["RUN", "--network_gbit", "25"], "--network_gbit: all actors are on one machine, without a network; pass"),
        (["RUN", "--actorz", "1"], "--actorz: unknown option; did you mean --actors?"),
    ],
)
def test_bad_input_gets_one_sentence(
    flags: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capacity.main([str(run) if flag == "RUN" else flag for flag in flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_short_run_and_a_wrong_file_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    assert capacity.main([str(run)]) == 2
    assert "made 4 updates; pass one of 5 or more" in capsys.readouterr().err
    stated = run / "stated.json"
    stated.write_text(json.dumps({"stages": {"learn_seconds": 1}, "layout": {}}))
    assert capacity.main([str(stated)]) == 2
    assert "names 'learn_seconds' under stages; use after_reward, " in capsys.readouterr().err
