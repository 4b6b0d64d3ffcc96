"""A run of two learner ranks on several Ray nodes, of which one is killed in the middle of it and another one joins."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayjobs.runtime import checkpoints
from tests import runs
from tests.gated_reward import GatedReward
from tests.runs import Models, models

__all__ = ["models"]  # fixture

pytestmark = pytest.mark.own_ray

IMAGES = 2 * 3  # of a task: timesteps, branches
SETTINGS = {
    "RAY_max_direct_call_object_size": "1000",  # experience is kept by the node that made it, as real ones are
    "RAY_health_check_period_ms": "1000",  # a node that is gone is missed after five
}


class Nodes:
    """A Ray cluster on this machine: a head without CPUs, and nodes in two groups."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self._cluster.address

    def add(self, cpus: int, role: str) -> Any:
        """Start a node."""
        return self._cluster.add_node(num_cpus=cpus, labels={"role": role})

    def kill(self, node: Any) -> None:
        """Kill a node's processes, and so the workers on it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        """Stop all of it."""
        self._cluster.shutdown()


def on(node: Any, title: str) -> list[Any]:
    """Processes of that title on a node: children of its raylet."""
    return runs.processes(title, node.all_processes["raylet"][0].process.pid)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    handler = signal.getsignal(signal.SIGTERM)  # which a node takes for itself
    found = Nodes()
    yield found
    found.end()
    signal.signal(signal.SIGTERM, handler)


def expected(models: Models, tmp_path: Path, **changes: Any) -> list[dict[str, float]]:
    """The same updates in one process."""
    from sharpening.data.source import PromptSource
    from sharpening.loop import train_in_process
    from sharpening.methods.rlhf import RLHFSharpening
    from sharpening.policies import load_policy

    options = runs.options(models, tmp_path / "not-made", reward="clip", **changes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_in_process(
            load_policy(models.pipeline), RLHFSharpening(options.method_options()), GatedReward(),
            PromptSource(runs.PROMPTS), options.training_options(),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)


def test_a_node_is_killed_and_another_joins(nodes: Nodes, models: Models, tmp_path: Path) -> None:
    """Four tasks an update; the node dies once three of the second update's are rolled out, some of them on it."""
    rollouts = [nodes.add(1, "rollout"), nodes.add(2, "rollout")]
    learners = nodes.add(2, "learner")
    gate, folder = tmp_path / "gate", tmp_path / "run"
    gate.write_text(str((4 + 3) * IMAGES))
    config = tmp_path / "rewards.json"
    config.write_text(json.dumps({"GatedReward": {"options": {"gate": str(gate)}}}))
    sizes: dict[str, Any] = {
        "max_train_steps": 3, "rollout_batch_size": 1, "num_rollout_actors": 2, "num_learners": 2,
        "train_batch_size": 2, "deepspeed_config": runs.ROOT / "cluster" / "deepspeed_zero2.json",
    }  # fmt: skip
    arguments = runs.flags(
        models, folder, **sizes, reward="tests.gated_reward:GatedReward", reward_config=config, reward_model=None,
        ray_address=nodes.address, rollout_nodes="role=rollout", learner_nodes="role=learner",
    )  # fmt: skip
    home = tmp_path / "home"
    home.mkdir()
    authentication = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if name in os.environ}
    process = runs.start_process(arguments, home, **authentication, **SETTINGS)
    try:
        waits = gate.with_suffix(".waits")
        runs.wait_for(lambda: process.poll() is not None or waits.exists(), "the second update's last task")
        assert process.poll() is None, process.communicate()[0]
        # Everything is where its label sends it.
        assert len(on(learners, "ray::RayTrainWorker")) == 2
        assert not on(learners, "ray::RolloutActor")
        assert not on(learners, "ray::ServeReplica")
        assert [len(on(node, "ray::RolloutActor")) for node in rollouts] == [1, 1]
        (replica,) = [process for node in rollouts for process in on(node, "ray::ServeReplica")]
        assert not any("libtorch" in file.path for file in replica.memory_maps())  # its reward computes with numpy
        (doomed,) = [node for node in rollouts if not on(node, "ray::ServeReplica")]
        nodes.kill(doomed)
        joined = nodes.add(1, "rollout")
        runs.wait_for(lambda: process.poll() is not None or on(joined, "ray::RolloutActor"), "an actor on the new node")
        gate.unlink()
    finally:
        if process.poll() is None and gate.exists():
            process.kill()
        said = runs.finish_process(process)
    assert process.returncode == 0, said
    runs.check_whole(folder, 3)
    assert re.search(r"update 1: the experience of \d tasks? was lost with its node and is made again", said)
    found, made = runs.curve(folder), expected(models, tmp_path, **sizes)
    for name, tolerance in {"reward": 2e-4, "loss": 2e-4, "grad_norm": 1e-2}.items():
        assert [row[name] for row in found] == pytest.approx([row[name] for row in made], rel=tolerance)
    shards = checkpoints.listed(folder / "checkpoints")[-1] / "engine"
    assert len(list(shards.glob("*optim_states.pt"))) == 2
    assert runs.read_metrics(folder)[-1]["restarts_learner"] == 0
