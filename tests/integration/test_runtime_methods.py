"""Every method on the same machinery: its curve is that of the plain loop."""

from pathlib import Path

import pytest
import torch

from rayjobs.runtime.driver import run
from rayjobs.runtime.ranked import PAIRS, training_source
from sharpening.data.pairs import CAPTION, PairFile
from sharpening.evaluation.run_folder import RunFolder
from sharpening.loop import train_in_process
from sharpening.methods import load_method
from sharpening.policies import load_policy
from sharpening.rewards.clip import ClipScorer
from tests import runs
from tests.runs import Models, local_ray, models, served

__all__ = ["local_ray", "models", "served"]  # fixtures


# Images, pairs that the job ranks itself, several optimiser steps an update. The others (standard, d3po, rebel) take no
# other way through the runtime than one of these; rounds, which IterPO makes, are in `test_runtime_lora.py`.
@pytest.mark.parametrize("method", ["sft", "dpo", "ddpo"])
def test_the_curve_is_the_plain_loops(method: str, models: Models, served: str, tmp_path: Path) -> None:
    folder = tmp_path / method
    options = runs.options_of(method, models, folder, num_rollout_actors=1, served_rewards=served)
    run(options)
    runs.check_whole(folder, options.max_train_steps)
    found = runs.curve(folder)
    source = training_source(options, RunFolder(folder))
    assert source is not None
    if method == "dpo":  # its pairs were ranked by the job itself
        assert len(source) == len(PairFile(folder / PAIRS, CAPTION, 64)) > 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = train_in_process(
            load_policy(models.pipeline), load_method(method, options.method_options()), ClipScorer(str(models.clip)),
            source, options.training_options(),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for name in ("loss", "reward", "grad_norm"):
        if name in expected[0]:
            tolerance = {"rel": 1e-2, "abs": 1e-6} if name == "grad_norm" else {"rel": 1e-3, "abs": 1e-6}
            assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], **tolerance), name
