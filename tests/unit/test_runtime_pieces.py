"""Weights on their way, checkpoints on disk, evaluation plans, progress lines, reservations; without Ray."""

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rayjobs import placement
from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.options import RLHFOptions
from rayjobs.runtime import checkpoints, cluster, reservations, weights
from rayjobs.runtime.evaluation import choose, plan
from rayjobs.runtime.places import PlaceWatch
from rayjobs.runtime.progress import ProgressLine
from sharpening.shapes.benchmark import BenchmarkPrompt
from tests.listening import free_port


@pytest.mark.parametrize(("lasting", "cleaners"), [(True, 1), (False, 0)])
def test_ray_train_starts_no_helper_that_is_idle(lasting: bool, cleaners: int) -> None:
    from rayjobs.runtime.trainer import Trainer

    names = [type(callback).__name__ for callback in Trainer(print, lasting=lasting)._create_default_callbacks()]
    assert {"AcceleratorSetupCallback", "BackendSetupCallback", "WorkingDirectorySetupCallback"} <= set(names)
    assert names.count("DatasetsCallback") == 0
    assert names.count("PlacementGroupCleanerCallback") == cleaners


def test_weights_travel_bit_for_bit_and_are_a_safetensors_file(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(3, 5), "b.c": torch.randn(7).to(torch.bfloat16), "n": torch.tensor(3),
        "empty": torch.zeros(0, 4), "strided": torch.randn(4, 6).t(),
    }  # fmt: skip
    buffer = weights.pack(state)
    assert buffer.dtype == np.uint8
    buffer.flags.writeable = False  # as it comes out of the object store
    weights.write(buffer, tmp_path / "w.safetensors")
    for found in (
        weights.unpack(buffer),
        weights.unpack(weights.read(tmp_path / "w.safetensors")),
        load_file(tmp_path / "w.safetensors"),
    ):
        assert found.keys() == state.keys()
        for name, value in state.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)


def test_only_versions_that_rollouts_can_ask_for_are_kept() -> None:
    versions = weights.Versions(staleness=1)
    for number in range(4):
        versions.publish(number, f"w{number}")
    assert [number in versions for number in range(5)] == [False, False, True, True, False]
    versions.publish(1, "again")  # a learner went back: what came after is void
    assert [number in versions for number in range(5)] == [False, True, False, False, False]
    assert versions.newest == 1
    assert versions[1] == "again"


def test_a_checkpoint_counts_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"update": 0, "loss": 0.5}]
    for update in (2, 4, 10):
        partial = checkpoints.partial_for(tmp_path, update)
        partial.mkdir()
        (partial / "engine.pt").write_bytes(b"state")
        state = checkpoints.TrainerState(update, 1, [])
        assert checkpoints.complete(tmp_path, state, rows) == checkpoints.path_for(tmp_path, update)
    checkpoints.partial_for(tmp_path, 12).mkdir()
    assert [path.name for path in checkpoints.listed(tmp_path)] == [
        "checkpoint-000002", "checkpoint-000004", "checkpoint-000010",
    ]  # fmt: skip
    counted: list[list[str]] = []
    delete = checkpoints.shutil.rmtree

    def rmtree(path: Path, **settings: Any) -> None:
        counted.append([found.name for found in checkpoints.listed(tmp_path)])
        delete(path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", rmtree)
        checkpoints.prune(tmp_path, 2)
    assert counted[-1] == ["checkpoint-000004", "checkpoint-000010"]  # one that is being deleted counts no more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000010"]
    assert checkpoints.read(checkpoints.path_for(tmp_path, 10)) == (checkpoints.TrainerState(10, 1, []), rows)


def test_an_existing_checkpoint_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for contents in (b"old", b"new"):
        partial = checkpoints.partial_for(tmp_path, 2)
        partial.mkdir()
        (partial / contents.decode()).write_bytes(contents)
        checkpoints.complete(tmp_path, checkpoints.TrainerState(2, 1, []), [])
    assert sorted(path.name for path in checkpoints.path_for(tmp_path, 2).iterdir()) == [
        "metrics.json", "new", "trainer_state.json",
    ]  # fmt: skip


def benchmark() -> list[BenchmarkPrompt]:
    return [BenchmarkPrompt(f"{category}{i}", category, ()) for category in "abc" for i in range(10)]


def test_evaluation_prompts_are_spread_over_categories() -> None:
    chosen = choose(benchmark(), 8)
    assert [prompt.category for _, prompt in chosen] == [*"aaa", *"bbb", *"cc"]
    assert [index for index, _ in chosen] == [0, 3, 6, 10, 13, 16, 20, 25]
    assert [index for index, _ in choose(benchmark(), 600)] == list(range(30))


def test_evaluation_tasks_cover_every_prompt_at_every_scale_once() -> None:
    chosen = choose(benchmark(), 9)
    tasks = plan(chosen, (1.0, 3.0), steps=4, batch=4, grid=3, verify=True)
    seen = [(task.guidance_scale, index) for task in tasks for index in task.indices]
    assert seen == [(scale, index) for scale in (1.0, 3.0) for index, _ in chosen]
    assert sum(len(task.keep) for task in tasks) == 3
    assert all(not task.keep for task in tasks if task.guidance_scale == 3.0)


def status(done: int, phase: str = "training", events: tuple[str, ...] = ()) -> dict[str, Any]:
    row = {"reward": 86.4, "reward_spread": 2.1, "loss": 0.68712, "updates_per_second": 0.25}
    return {"events": list(events), "phase": phase, "done": done, "total": 4, "row": row}


def test_a_log_gets_events_at_once_and_lines_now_and_then() -> None:
    log = io.StringIO()
    line = ProgressLine("rlhf", log)
    line.show(status(1, events=("rollout-0 died",)))
    line.show(status(1))
    line.show(status(2))  # too soon after the first
    line.show(status(4))  # the last one is always said
    assert log.getvalue().splitlines() == [
        "rlhf: rollout-0 died",
        "rlhf: training 1/4, reward 86.40 ± 2.10, loss 0.6871, 0.25 updates/s",
        "rlhf: training 4/4, reward 86.40 ± 2.10, loss 0.6871, 0.25 updates/s",
    ]


def test_looks_at_held_out_prompts_get_one_line_and_not_one_a_task() -> None:
    log = io.StringIO()
    line = ProgressLine("rlhf", log)
    line.show(status(1))
    line.show(status(4, "validating"))
    line.say("held-out prompts after update 1: reward 59.10")
    assert len(log.getvalue().splitlines()) == 2


def test_reservations_fit_the_cluster() -> None:
    options = RLHFOptions(num_rollout_actors=2, rollout_threads=1, num_learners=1, learner_threads=2, reward_threads=1)
    roomy = reservations.reserve(options, {"CPU": 8.0}, gpu=False)
    assert (roomy.rollout, roomy.learner, roomy.reward, roomy.note) == (1.0, 2.0, 1.0, "")
    tight = reservations.reserve(options, {"CPU": 2.0}, gpu=False)
    assert 2 * tight.rollout + tight.learner + tight.reward <= 2.0
    assert "5 threads share 2 CPUs" in tight.note
    # A run of a sweep, and its part of a node.
    shared = reservations.reserve(options, {"CPU": 2.0}, gpu=False, nodes=[8.0])
    assert 2 * shared.rollout + shared.learner + shared.reward <= 2.0
    with pytest.raises(OptionError, match="num_learners"):
        reservations.reserve(options.model_copy(update={"num_learners": 3}), {"CPU": 2.0}, gpu=False)


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        ([2, 2], {}),  # where a reward on one node and an actor on the other leave a learner of two threads no place
        ([2, 2], {"num_rollout_actors": 3}),
        ([8, 8], {"num_rollout_actors": 15}),
        ([4, 2, 1, 1], {"num_rollout_actors": 4, "num_learners": 2}),
        ([64, 64, 64], {"num_rollout_actors": 180}),
        ([4, 4], {"learner_threads": 8}),
    ],
)
def test_every_process_finds_a_place_whichever_nodes_the_others_are_on(nodes: list[int], sizes: dict[str, int]) -> None:
    options = RLHFOptions(**({"num_rollout_actors": 1, "learner_threads": 2, "reward_threads": 1} | sizes))
    found = reservations.reserve(options, {"CPU": float(sum(nodes))}, gpu=False, nodes=nodes)
    wanted = [found.rollout] * options.num_rollout_actors + [found.learner] * options.num_learners + [found.reward]
    chance = random.Random(0)
    for _ in range(300):
        free, waiting = [float(cpus) for cpus in nodes], chance.sample(wanted, len(wanted))
        for size in waiting:
            fitting = [place for place, cpus in enumerate(free) if cpus >= size - 1e-9]
            assert fitting, (free, size)
            free[chance.choice(fitting)] -= size
    assert sum(wanted) > 0.5 * sum(nodes) or found.rollout == 1.0  # and no more is left unused than it takes


def test_learners_that_wait_for_a_place_are_told_of_once_and_so_is_the_end_of_it() -> None:
    said: list[str] = []
    watch = PlaceWatch({"CPU": 2.0, "GPU": 1.0}, 2, said.append)
    rank = {"CPU": 2.0, "GPU": 1.0}

    def hear(state: str) -> None:
        other = {"state": "PENDING", "bundles": {0: {"CPU": 1.0}}}  # somebody else's
        watch.hear([other, {"state": state, "bundles": {0: rank, 1: rank}}])

    hear("CREATED")
    assert said == []
    hear("PENDING")
    hear("PENDING")
    (line,) = said
    assert line.startswith("2 learners wait for a place with 2 CPU and 1 GPU on a node")
    hear("CREATED")
    hear("REMOVED")
    assert said[1:] == ["the learners have their place"]


def test_a_learner_has_more_than_half_a_gpu_to_itself() -> None:
    options = RLHFOptions(num_rollout_actors=2, num_learners=2)
    rollout, learner, reward = reservations.reserve(options, {"CPU": 16.0, "GPU": 2.0}, gpu=True).gpus
    assert learner > 0.5
    assert 2 * rollout + 2 * learner + reward <= 2.0
    assert reservations.reserve(options, {"CPU": 16.0, "GPU": 8.0}, gpu=True).gpus == (1.0, 1.0, 1.0)


def node(gpus: float = 0.0, alive: bool = True, **labels: str) -> dict[str, Any]:
    """What `ray.nodes()` tells of a node with 8 CPUs."""
    return {"Alive": alive, "Resources": {"CPU": 8.0, "GPU": gpus}, "Labels": {"ray.io/node-id": "x", **labels}}


def test_reservations_fit_the_groups_of_a_cluster() -> None:
    nodes = [
        node(8, role="rollout"),
        node(8, role="rollout"),
        node(8, role="learner"),
        node(),
        node(8, False, role="learner"),
    ]
    together = {"CPU": 32.0, "GPU": 24.0}
    labels = {"rollout_nodes": "role=rollout", "learner_nodes": "role=learner"}
    sizes = {"num_rollout_actors": 14, "reward_replicas": 2, "num_learners": 8}
    whole = placement.reserve(RLHFOptions(**labels, **sizes), nodes, together, gpu=True)
    assert whole.gpus == (1.0, 1.0, 1.0)
    # Twice the actors share the GPUs of their own nodes, and take none of the learners'.
    shared = placement.reserve(RLHFOptions(**labels, **sizes | {"num_rollout_actors": 30}), nodes, together, gpu=True)
    assert shared.gpus == (0.5, 1.0, 0.5)
    # Without a GPU: 16 CPUs for 16 threads, and 8 for 8 × 2.
    cpus = placement.reserve(RLHFOptions(**labels, **sizes), nodes, together, gpu=False)
    assert (cpus.rollout, cpus.reward, cpus.learner) == (1.0, 1.0, 1.0)
    unlabelled = RLHFOptions(**sizes)
    found = placement.reserve(unlabelled, nodes, together, gpu=True)
    assert found == reservations.reserve(unlabelled, together, gpu=True, nodes=[8.0] * 4)
    with pytest.raises(OptionError, match="--num_learners: 16 learners need as many GPUs, and the cluster has 8"):
        placement.reserve(RLHFOptions(**labels, **sizes | {"num_learners": 16}), nodes, together, gpu=True)
    with pytest.raises(
        OptionError, match=r"--learner_nodes: no node .* role=learn \(role=learner, role=rollout\); start"
    ):
        placement.reserve(RLHFOptions(**labels | {"learner_nodes": "role=learn"}), nodes, together, gpu=True)


def test_a_local_ray_leaves_no_token_in_a_clean_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not cluster.has_token()
    assert cluster.authentication(joins=True) == {}  # a cluster without tokens, as `ray start --head` makes it here
    ours = cluster.authentication(joins=False)
    assert ours["RAY_AUTH_MODE"] == "token"
    assert len(ours["RAY_AUTH_TOKEN"]) == 64
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home")
    assert cluster.authentication(joins=True) == {"RAY_AUTH_MODE": "token"}
    assert cluster.authentication(joins=False) == {"RAY_AUTH_MODE": "token"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert cluster.authentication(joins=False) == {}


def test_the_config_that_a_resume_command_names_is_what_the_run_had(tmp_path: Path) -> None:
    options = RLHFOptions(max_train_steps=7, output_dir=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(options.config()))
    again = parse(["--config", str(tmp_path / "config.json")], "finetune.py", ("ddpo", "rlhf"))
    assert (again.method, again.max_train_steps) == ("rlhf", 7)


@pytest.mark.parametrize(
    ("method", "changes", "ranked", "scores"),
    [
        ("rlhf", {"skip_evaluation": True}, True, True),
        ("standard", {"skip_evaluation": True}, True, False),
        ("standard", {}, True, True),  # held-out prompts are scored
        ("dpo", {"skip_evaluation": True}, True, False),
        ("dpo", {"skip_evaluation": True}, False, True),  # its pairs are still to be ranked
    ],
)
def test_a_reward_is_served_where_somebody_asks_for_it(
    method: str, changes: dict[str, bool], ranked: bool, scores: bool, tmp_path: Path
) -> None:
    from rayjobs.options import options_class
    from rayjobs.runtime.launch import Plan
    from rayjobs.runtime.reservations import Reservations
    from sharpening.data.source import PromptSource
    from sharpening.evaluation.run_folder import RunFolder

    source = PromptSource(["a red circle"]) if ranked else None
    reserved = Reservations(1, 1, 1, (0.0, 0.0, 0.0), "")
    plan = Plan(options_class(method)(**changes), RunFolder(tmp_path), "r", "n", "cpu", reserved, 2.0, source)
    assert plan.scores is scores


@dataclass(frozen=True)
class Beside:
    """Stands where the fork server of a Ray would, for a Ray that is none."""

    told: list[str]

    def announce(self) -> None:
        self.told.append("announce")

    def close(self) -> None:
        self.told.append("close")


def test_a_ray_that_is_slow_to_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    slow = "The current node timed out during startup. This could happen because some of the raylet failed to startup"
    errors: list[Exception] = []
    started: list[dict[str, Any]] = []

    def init(**how: Any) -> None:
        started.append(how)
        if errors:
            raise errors.pop()

    for name in ("PYTHONPATH", *cluster.SETTINGS, *cluster.OWN):  # which it sets for good
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    beside = Beside([])
    monkeypatch.setattr(cluster.beside, "start", lambda: beside)
    errors[:] = [Exception(slow)] * 2
    assert cluster.join(RLHFOptions(), "name", 1).owned
    assert len(started) == 3
    assert beside.told == ["announce"]
    assert {how["_node_ip_address"] for how in started} == {"127.0.0.1"}
    errors[:] = [Exception(slow)] * 3
    with pytest.raises(Exception, match="timed out during startup"):
        cluster.join(RLHFOptions(), "name", 1)
    assert beside.told == ["announce", "close"]  # what is to be forked from ends with the Ray that never came
    started.clear()
    errors[:] = [ValueError("another thing")]
    with pytest.raises(ValueError, match="another thing"):
        cluster.join(RLHFOptions(), "name", 1)
    assert len(started) == 1


def test_a_cluster_that_nobody_answers_for_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "init", lambda **how: pytest.fail("Ray would ask for hours"))
    for name in cluster.SETTINGS:  # which it sets for good
        monkeypatch.setenv(name, "")
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(OptionError, match=rf"--ray_address: no Ray cluster lets us in at {address} \(.*refused"):
        cluster.join(RLHFOptions(ray_address=address), "name", 1)
