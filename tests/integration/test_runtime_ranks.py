"""The learner on two ranks at every ZeRO stage: the curve and the weights of the plain loop in one process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpening.data.source import PromptSource
from sharpening.loop import train_in_process
from sharpening.methods.rlhf import RLHFSharpening
from sharpening.policies import load_policy
from tests import two_ranks
from tests.listening import free_port
from tests.own_rewards import Brightness
from tests.runs import PATIENCE_S, PROMPTS

Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def ranks(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left, one a rank, which learnt at every stage one after the other."""
    folder = tmp_path_factory.mktemp("ranks")
    port = free_port()
    # Both ranks are on this machine, which is what Ray Train would tell DeepSpeed.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.two_ranks", str(pipeline_folder), str(folder)]
    started = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        with (folder / f"rank{rank}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    [*command, rank, str(port)], cwd=two_ranks.__file__.rpartition("/tests/")[0],
                    env=os.environ | shared | own, stdout=log, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    try:
        for process in started:
            process.wait(PATIENCE_S)
    finally:
        for process in started:
            process.kill()
            process.wait()
        print(*(path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))), sep="\n")
    assert [process.returncode for process in started] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def plain(pipeline_folder: Path) -> tuple[list[dict[str, float]], Weights, Weights]:
    """The plain loop's curve, and the weights before and after."""
    options, policy = two_ranks.options(), load_policy(pipeline_folder)
    before = {name: value.clone() for name, value in policy.trainable_state().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        method = RLHFSharpening(options.method_options())
        rows = train_in_process(policy, method, Brightness(), PromptSource(PROMPTS), options.training_options())
    finally:
        torch.set_num_threads(threads)
    return rows, before, policy.trainable_state()


@pytest.mark.parametrize("stage", two_ranks.STAGES)
def test_two_ranks_learn_what_one_process_learns(ranks: Path, plain: Any, stage: int) -> None:
    expected, before, wanted = plain
    found, after = torch.load(ranks / f"zero{stage}.pt")
    assert len(found) == len(expected) == 3
    for name, tolerance in {"loss": 5e-5, "grad_norm": 1e-4, "learning_rate": 1e-9, "accuracy": 1e-6}.items():
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=tolerance)
    assert len({row["loss"] for row in found}) == 3
    assert min(row["grad_norm"] for row in found) > 0.1  # so that clipping is part of it
    assert after.keys() == wanted.keys()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    apart = max(float((after[name] - wanted[name]).abs().max()) for name in before)
    assert moved > 5e-4
    assert apart < 0.005 * moved
