"""What a run learns from: the source its options name, and the pairs that it ranks itself."""

from pathlib import Path

import numpy as np
import pytest

from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import options_class
from rayjobs.runtime.training_data import PAIRS, rank_tasks, training_source, write_ranked
from sharpening.data.source import Batch
from sharpening.evaluation.run_folder import RunFolder
from sharpening.methods.ranking import RankedPairs

IMAGES = np.arange(2 * 2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 2, 8, 8, 3)


def ranked(ties: int = 0, dropped: int = 0, pairs: int = 2) -> RankedPairs:
    return RankedPairs(
        Batch(["a circle", "a cross"][:pairs], IMAGES[:pairs]), list(range(pairs)), np.ones((pairs, 2)),
        list(range(ties)), [(slot, "timeout") for slot in range(dropped)], 10, 4, {"generate": 1.0},
    )  # fmt: skip


def options(method: str = "dpo", **changes: object):
    return options_class(method)(resolution=8, ranked_prompts=4, rollout_batch_size=3, **changes)


def test_each_kind_of_example_has_its_source(tmp_path: Path) -> None:
    prompts = training_source(options_class("rlhf")(), RunFolder(tmp_path))
    assert prompts is not None
    assert prompts.kind == "prompts"
    assert len(prompts) == 4000
    images = training_source(options_class("sft")(resolution=64), RunFolder(tmp_path))
    assert images is not None
    assert images.batch([3]).images.shape == (1, 1, 64, 64, 3)
    assert training_source(options(), RunFolder(tmp_path)) is None  # still to be ranked


def test_prompts_to_rank_are_distinct_and_cut_into_tasks() -> None:
    tasks = rank_tasks(options())
    assert [len(task.items) for task in tasks] == [3, 1]
    items = [item for task in tasks for item in task.items]
    assert len(set(items)) == 4
    assert items == [item for task in rank_tasks(options()) for item in task.items]
    assert items != [item for task in rank_tasks(options(seed=1)) for item in task.items]
    assert {task.samples for task in tasks} == {4}


def test_ranked_pairs_are_kept_and_read_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert write_ranked([ranked(ties=1), ranked(dropped=1)], options(), folder) == (4, " (1 ties, 1 timeout left out)")
    source = training_source(options(), folder)
    assert source is not None
    batch = source.batch([1, 2])
    assert batch.prompts == ["a cross", "a circle"]
    assert np.array_equal(batch.images, IMAGES[[1, 0]])


def test_pairs_that_cannot_be_ranked_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"3 of 4 prompts could not be ranked \(3 timeout\)"):
        write_ranked([ranked(dropped=3)], options(), RunFolder(tmp_path))
    with pytest.raises(RunStopped, match="does not tell its images apart"):
        write_ranked([ranked(ties=4, pairs=0)], options(), RunFolder(tmp_path))
    assert not (tmp_path / PAIRS).exists()


def test_a_file_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.parquet").write_text("no Parquet")
    for method, option in (("sft", "train_data"), ("dpo", "train_data")):
        chosen = options_class(method)(resolution=8, train_data=str(tmp_path / "notes.parquet"))
        with pytest.raises(OptionError, match=f"--{option}: "):
            training_source(chosen, RunFolder(tmp_path))
