"""The order of examples, and what happens to those that cannot be used: they give way, and are counted."""

from __future__ import annotations

import logging
from collections import Counter
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayjobs.runtime.data_notes import DataNotes
from rayjobs.runtime.experience import Summary, rollout_row
from sharpening.data import prompts
from sharpening.data.images import ImageFile
from sharpening.data.prompts import Stream
from sharpening.data.reading import ATTEMPTS, data_columns, look, read, told
from sharpening.data.shuffle import shuffled
from sharpening.data.source import DataFileError, ExampleError, PromptSource
from sharpening.seeds import generator

SIZE = 64


def encoded(number: int) -> bytes:
    buffer = BytesIO()
    picture = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


FAULTS = {2: ("image", b"no image"), 3: ("text", " "), 7: ("image", encoded(7)[:500]), 9: ("image", None)}
REASONS = {2: "corrupt image", 3: "empty caption", 7: "corrupt image", 9: "missing image"}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> ImageFile:
    """Twelve images, of which four cannot be used."""
    rows = [{"image": encoded(i), "text": f"picture {i}"} for i in range(12)]
    for number, (column, value) in FAULTS.items():
        rows[number][column] = value
    path = tmp_path_factory.mktemp("faulty") / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return ImageFile(path, "image", "text", SIZE)


# -- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_computed_order_is_a_permutation(count):
    order = [shuffled(place, count, 1, "prompts", 0) for place in range(count)]
    assert sorted(order) == list(range(count))
    if count > 5:
        assert order != [shuffled(place, count, 1, "prompts", 1) for place in range(count)]
        assert order != [shuffled(place, count, 2, "prompts", 0) for place in range(count)]
    for place in (-1, count):
        with pytest.raises(IndexError):
            shuffled(place, count, 0)


def test_computed_orders_are_uniform():
    """Where each of 6 elements goes, and which neighbour follows which, over 6,000 orders: χ² at 1 in 10⁵."""
    orders = [[shuffled(place, 6, seed, "a") for place in range(6)] for seed in range(6000)]
    places = np.zeros((6, 6))
    for order in orders:
        places[np.arange(6), order] += 1
    assert ((places - 1000) ** 2 / 1000).sum() < 68  # 25 degrees of freedom
    pairs = Counter((order[0], order[1]) for order in orders)
    assert len(pairs) == 30
    assert sum((found - 200) ** 2 / 200 for found in pairs.values()) < 74  # 29 degrees of freedom


def test_long_orders_need_no_memory_and_go_through_whole_epochs(monkeypatch):
    monkeypatch.setattr(prompts, "PERMUTED", 10)
    stream = Stream(13, 5, 4)
    drawn = [stream.index(update, slot) for update in range(13) for slot in range(4)]
    assert all(sorted(drawn[start : start + 13]) == list(range(13)) for start in range(0, 52, 13))
    backwards = [Stream(13, 5, 4).index(update, slot) for update in reversed(range(13)) for slot in (3, 2, 1, 0)]
    assert drawn == backwards[::-1]
    monkeypatch.undo()
    monkeypatch.setattr(prompts, "_permutation", lambda *_: pytest.fail("a permutation was made"))
    huge = Stream(10**12, 0, 8)
    places = [huge.index(update, slot) for update in (0, 10**9) for slot in range(8)]
    assert len(set(places)) == 16
    assert max(places) > 10**11


# -- faults --------------------------------------------------------------------------------------------------------


def test_an_example_that_cannot_be_used_gives_way_to_another(faulty):
    found = read(faulty, [0, 2, 5, 3], 7, 4, (0, 1, 2, 3))
    assert found.batch.prompts[0] == "picture 0"
    assert found.batch.prompts[2] == "picture 5"
    assert found.skipped[0] == (1, "corrupt image")
    expected: list[tuple[int, str]] = []
    for place, (item, slot) in {1: (2, 1), 3: (3, 3)}.items():  # the rule, by hand
        attempt = 0
        while item in FAULTS:
            expected.append((slot, REASONS[item]))
            item = int(generator(7, "stand-in", 4, slot, attempt).integers(12))
            attempt += 1
        assert found.batch.prompts[place] == f"picture {item}"
    assert found.skipped == expected


def test_what_is_read_does_not_depend_on_how_slots_are_split(faulty):
    items = [2, 3, 7, 9, 0, 1, 2, 3]
    together = read(faulty, items, 0, 1, range(8))
    for size in (1, 3):
        parts = [range(8)[start : start + size] for start in range(0, 8, size)]
        found = [read(faulty, [items[slot] for slot in part], 0, 1, part) for part in parts]
        assert [p for part in found for p in part.batch.prompts] == together.batch.prompts
        assert [entry for part in found for entry in part.skipped] == together.skipped
        np.testing.assert_array_equal(np.concatenate([part.batch.images for part in found]), together.batch.images)
    assert read(faulty, items, 0, 2, range(8)).batch.prompts != together.batch.prompts


def test_whole_examples_are_read_at_once(faulty, monkeypatch):
    asked, batch = [], ImageFile.batch
    monkeypatch.setattr(ImageFile, "batch", lambda self, items: asked.append(list(items)) or batch(self, items))
    assert not read(faulty, [4, 0, 1], 0, 0, range(3)).skipped
    assert asked == [[4, 0, 1]]


def test_data_without_one_good_example_end_it():
    source = PromptSource(["", " "])
    with pytest.raises(DataFileError, match=f"{ATTEMPTS} examples in a row cannot be used, the last because prompt"):
        read(source, [0], 0, 0, [0])
    with pytest.raises(ExampleError, match="is blank"):
        look(source)
    look(PromptSource(["", "a"]))


def test_a_look_is_spread_over_the_data():
    asked = []

    class Seen(PromptSource):
        def batch(self, indices):
            asked.extend(indices)
            raise ExampleError("tie", "a tie; leave it out")

    with pytest.raises(ExampleError):
        look(Seen(["a"] * 3200))
    assert asked == list(range(0, 3200, 100))


def test_counts_become_columns_and_sentences():
    columns = data_columns([(0, "corrupt image"), (3, "empty caption"), (3, "corrupt image")], truncated=2)
    assert columns == {"skipped": 3, "skipped_corrupt_image": 2, "skipped_empty_caption": 1, "truncated": 2}
    assert data_columns([]) == {}
    assert told({"loss": 1.0, **columns}) == (
        "examples were skipped and others took their place (corrupt image: 2, empty caption: 1); 2 prompts are longer "
        "than the model reads and were cut"
    )
    assert told({"skipped": 0, "truncated": 0}) == ""
    parts = [
        Summary(1, 1, [], np.zeros((1, 0)), {}, {}, {}, 0, skipped=[(slot, "tie")], truncated=slot) for slot in (1, 2)
    ]
    row = rollout_row(parts, 1)
    assert (row["skipped"], row["skipped_tie"], row["truncated"]) == (2, 2, 3)


def test_a_run_speaks_of_each_fault_once_and_of_the_sum_at_the_end():
    notes = DataNotes(5)
    rows = [{"update": u} | (data_columns([(0, "tie")], truncated=u == 2) if u else {}) for u in range(5)]
    said = [notes.after(row) for row in rows]
    assert [bool(sentence) for sentence in said] == [False, True, True, False, True]
    assert "tie: 1" in said[1]
    assert "1 prompt is longer" in said[2]
    assert said[4].startswith("data, over all updates")
    assert "tie: 4" in said[4]
    resumed = DataNotes(5)
    resumed.begin([*rows[:3], {"update": 3, "skipped_tie": float("nan")}])
    assert "tie: 3" in resumed.after(rows[4])
    resumed.begin(rows[:2])  # the learner went back
    assert "tie: 2" in resumed.after(rows[4])


# -- in training ---------------------------------------------------------------------------------------------------


def test_training_goes_on_over_faults_and_is_the_same_however_it_is_split(policy, faulty):
    from sharpening.loop import train_in_process
    from sharpening.methods.standard import StandardFineTuning
    from sharpening.options import TrainingOptions
    from sharpening.options.standard import StandardOptions

    class Counting(ImageFile):
        def batch(self, items):
            read_items.extend(items)
            return super().batch(items)

    source = Counting(faulty.file, "image", "text", SIZE)
    histories = []
    for size in (1, 4):
        read_items: list[int] = []
        options = TrainingOptions(updates=4, prompts_per_update=4, rollout_batch_size=size, train_batch_size=4, seed=3)
        start = policy.frozen_copy()
        histories.append(
            train_in_process(start, StandardFineTuning(StandardOptions(timesteps_per_image=1)), None, source, options)
        )
    first, second = ([{k: v for k, v in row.items() if "seconds" not in k} for row in rows] for rows in histories)
    assert [row["skipped"] for row in first if "skipped" in row] == [
        row["skipped"] for row in second if "skipped" in row
    ]
    assert sum(row.get("skipped", 0) for row in first) >= 4  # an epoch is 3 updates and meets all four
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert one["dropped"] == 0


def test_long_prompts_are_counted_once_and_not_complained_about(policy, caplog, capsys):
    from sharpening.policies.prompt_length import overlong
    from tests.tiny_pipelines import build

    short, exact, long = "a" * 5, "b" * 14, "c" * 15  # a token a letter, 16 with begin and end
    assert overlong(policy, [short, exact, long, long]) == 2
    assert overlong(object(), [long]) == 0
    handlers = logging.getLogger("diffusers").handlers
    assert handlers
    logger = logging.getLogger("diffusers.pipelines.anything")
    capsys.readouterr()
    policy.encode([long])
    record = logger.makeRecord(logger.name, logging.WARNING, "f", 1, "something else", (), None)
    assert all(handler.filter(record) for handler in handlers)
    record.msg = "The following part of your input was truncated because CLIP can only handle sequences up to 16 tokens"
    assert not any(handler.filter(record) for handler in handlers)

    from sharpening.policies.prompt_length import count_overlong, readers

    pipeline = build("sd3")  # CLIP reads 16 tokens, T5 256
    limits = [limit for _, limit in readers(pipeline)]
    assert limits == [16, 16, 256]
    assert count_overlong(pipeline, [long, "a " * 300]) == 1
