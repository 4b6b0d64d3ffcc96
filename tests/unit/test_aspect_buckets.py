"""Aspect buckets: shapes, which image goes where, what is cut, and that every update is of one shape."""

from __future__ import annotations

import pickle
from collections import Counter
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sharpening.data.bucket_stream import BucketStream, stream_of
from sharpening.data.buckets import BucketedImages, BucketedPairs, bucket_sizes, fit, nearest, step_of
from sharpening.data.pairs import PairFile
from sharpening.data.parquet import RowFile
from sharpening.data.prompts import Stream
from sharpening.data.reading import counts_of, read
from sharpening.data.source import Batch, DataFileError
from sharpening.methods.base import Seeds

SHAPES = [(64, 64), (128, 60), (60, 128), (50, 60), (100, 100), (90, 60), (300, 10)]  # height, width


def encoded(height: int, width: int, number: int = 0, **options) -> bytes:
    picture = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", **options)
    return buffer.getvalue()


def write(path, count: int = 40, **faults: bytes):
    rows = [{"image": encoded(*SHAPES[i % 7], i), "text": f"picture {i}"} for i in range(count)]
    for number, contents in faults.items():
        rows[int(number.removeprefix("row"))]["image"] = contents
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return RowFile(path)


@pytest.mark.parametrize("resolution", [64, 512, 768, 1024])
def test_shapes_have_the_square_s_area(resolution):
    step = step_of(resolution)
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert 0.5 <= width / height <= 2
        assert height * width <= resolution**2 < (height + step) * (width + step)
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(ratios)
    if resolution == 1024:  # those of SDXL's table that no other contains
        assert step == 64
        assert {(1344, 768), (1216, 832), (1152, 896), (1088, 960), (704, 1408)} <= set(sizes)


@pytest.mark.parametrize(
    ("resolution", "unit", "step"),
    [(1024, 16, 64), (512, 16, 32), (384, 16, 16), (1000, 8, 40), (64, 16, 16), (96, 32, 32), (16, 2, 2)],
)
def test_sides_are_what_the_model_draws_and_the_square_is_among_the_shapes(resolution, unit, step):
    assert step_of(resolution, unit) == step
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    assert all(height % unit == width % unit == 0 for height, width in sizes)
    limited = bucket_sizes(resolution, step, resolution)
    assert limited == ((resolution, resolution),)


def test_the_nearest_ratio_on_a_logarithmic_scale():
    sizes = [(2, 1), (1, 1), (1, 2)]
    for height, width, place in ((10, 10, 1), (100, 1, 0), (10, 14, 1), (10, 15, 2), (15, 10, 0), (14, 10, 1)):
        assert nearest(height, width, sizes) == place


def test_scaled_to_cover_and_cut_in_the_middle():
    ramp = np.zeros((40, 100, 3), np.uint8)
    ramp[:, :, 0] = np.arange(100)
    pixels, ids = fit(Image.fromarray(ramp), (20, 40))
    assert pixels.shape == (20, 40, 3)
    assert ids == (40, 100, 0, 5, 20, 40)  # scaled to 20 × 50
    np.testing.assert_allclose(pixels[10, :, 0], 2 * (np.arange(40) + 5) + 0.5, atol=1.01)
    pixels, ids = fit(Image.fromarray(ramp), (40, 100))
    np.testing.assert_array_equal(pixels, ramp)
    assert ids == (40, 100, 0, 0, 40, 100)


def test_images_are_sorted_into_buckets(tmp_path):
    sizes = bucket_sizes(64, 8)
    source = BucketedImages(write(tmp_path / "a.parquet", row3=b"no image"), "image", "text", sizes)
    assert len(source) == sum(source.counts) == 39
    assert source.left_out == 1
    known = pickle.loads(pickle.dumps(source))
    seen, start = [], 0
    for size, count in zip(source.sizes, source.counts, strict=True):
        places = list(range(start, start + count))
        start += count
        batch = known.batch(places)
        assert batch.images.shape == (count, 1, *size, 3)
        for place, prompt in enumerate(batch.prompts):
            height, width = SHAPES[int(prompt.split()[1]) % 7]
            assert size == sizes[nearest(height, width, sizes)]
            assert batch.sizes is not None
            assert batch.sizes[place, :2].tolist() == [height, width]
            assert batch.sizes[place, 4:].tolist() == list(size)
        seen += batch.prompts
    assert sorted(seen) == sorted(f"picture {i}" for i in range(40) if i != 3)
    with pytest.raises(ValueError, match="of one bucket, and these examples are of 2"):
        source.batch([0, len(source) - 1])
    with pytest.raises(IndexError, match="examples 0 to 38"):
        source.batch([39])


def test_both_images_of_a_pair_are_fitted_to_the_bucket_between_their_shapes(tmp_path):
    shapes = [((64, 64), (64, 64)), ((64, 128), (64, 128)), ((64, 64), (64, 96)), ((64, 128), (128, 64))]
    pairs = [
        {"image_w": encoded(*w, 2 * i), "image_l": encoded(*other, 2 * i + 1)} for i, (w, other) in enumerate(shapes)
    ]
    rows = [pair | {"caption": f"pair {i}"} for i, pair in enumerate(pairs)]
    rows.append({"image_w": encoded(64, 64), "image_l": b"no image", "caption": "broken"})
    rows.append({"image_w": encoded(64, 64), "image_l": encoded(64, 64), "caption": "the same twice"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    file = PairFile(RowFile(tmp_path / "a.parquet"), "caption", 64)
    source = pickle.loads(pickle.dumps(BucketedPairs(file, bucket_sizes(64, 8))))
    assert (source.kind, len(source), source.left_out) == ("pairs", 5, 1)
    assert source.sizes == ((64, 64), (56, 72), (48, 80))
    assert (source.counts, counts_of(source)) == ((3, 1, 1), source.counts)
    assert source.prompts(range(5)) == ["pair 0", "pair 3", "the same twice", "pair 2", "pair 1"]
    batch = source.batch([3])
    assert batch.images.shape == (1, 2, 56, 72, 3)
    assert batch.sizes is None  # one condition for both
    expected = [fit(Image.open(BytesIO(pairs[2][side])), (56, 72))[0] for side in ("image_w", "image_l")]
    np.testing.assert_array_equal(batch.images[0], expected)
    reading = read(source, [2], 0, 0, [0])
    assert reading.skipped == [(0, "equal images")]
    assert reading.batch.images.shape == (1, 2, 64, 64, 3)
    with pytest.raises(ValueError, match="of one bucket, and these examples are of 2"):
        source.batch([0, 4])
    labelled = [{"jpg_0": p["image_w"], "jpg_1": p["image_l"], "label_0": 0, "caption": "x"} for p in pairs[1:3]]
    pq.write_table(pa.Table.from_pylist(labelled), tmp_path / "b.parquet")
    source = BucketedPairs(PairFile(RowFile(tmp_path / "b.parquet"), "caption", 64), bucket_sizes(64, 8), at_least=2)
    expected = fit(Image.open(BytesIO(pairs[2]["image_l"])), source.sizes[0])[0]
    np.testing.assert_array_equal(source.batch([1]).images[0, 0], expected)  # the second one is preferred


def test_pairs_of_other_shapes_are_learnt_from(tmp_path, policy, brightness):
    from sharpening.loop import train_in_process
    from sharpening.methods import load_method, options_class
    from sharpening.options import TrainingOptions

    rows = [
        {"image_w": encoded(*shape, 2 * i), "image_l": encoded(*shape, 2 * i + 1), "caption": "a cross"}
        for i, shape in enumerate([(64, 64), (64, 128)] * 2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = BucketedPairs(PairFile(RowFile(tmp_path / "a.parquet"), "caption", 64), bucket_sizes(64, 8))
    told = set()
    policy.denoiser.register_forward_pre_hook(
        lambda module, args, named: told.update(
            (args[0].shape[-2:], *map(tuple, named["added_cond_kwargs"]["time_ids"].tolist()))
        ),
        with_kwargs=True,
    )
    training = TrainingOptions(updates=2, prompts_per_update=2, rollout_batch_size=2, train_batch_size=2)
    method = load_method("dpo", options_class("dpo")(timesteps_per_pair=1, proportion_empty_prompts=0.5))
    found = train_in_process(policy, method, brightness, source, training)
    assert all(np.isfinite(row["loss"]) for row in found)
    assert told == {(8, 8), (64, 64, 0, 0, 64, 64), (6, 10), (48, 80, 0, 0, 48, 80)}


def test_small_buckets_join_the_nearest_large_one(tmp_path):
    rows = [{"image": encoded(64, 64, i), "text": "a"} for i in range(9)]
    rows += [{"image": encoded(*shape), "text": "b"} for shape in ((60, 66), (64, 128), (64, 128), (62, 126))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = BucketedImages(RowFile(tmp_path / "a.parquet"), "image", "text", bucket_sizes(64, 8), at_least=3)
    assert source.sizes == ((64, 64), (48, 80))
    assert source.counts == (10, 3)
    alone = BucketedImages(RowFile(tmp_path / "a.parquet"), "image", "text", bucket_sizes(64, 8), at_least=99)
    assert alone.counts == (13,)


def test_columns_tell_sizes_and_exif_turns_them(tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6
    rows = [{"image": encoded(40, 80, exif=turned), "text": "a"}, {"image": encoded(80, 40), "text": "b"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sizes = bucket_sizes(64, 8)
    assert BucketedImages(RowFile(tmp_path / "a.parquet"), "image", "text", sizes).sizes == ((80, 48),)
    told = [row | {"height": 80, "width": 40} for row in rows]
    pq.write_table(pa.Table.from_pylist(told), tmp_path / "b.parquet")
    monkeypatch.setattr("sharpening.data.buckets._head", lambda *_: pytest.fail("an image was read"))
    assert BucketedImages(RowFile(tmp_path / "b.parquet"), "image", "text", sizes).counts == (2,)
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"], "height": [0], "width": [3]}), tmp_path / "c.parquet")
    with pytest.raises(DataFileError, match="no readable image in column 'image'; name another column"):
        BucketedImages(RowFile(tmp_path / "c.parquet"), "image", "text", sizes)


def test_every_update_is_of_one_bucket_and_an_epoch_meets_all():
    counts, per_update = (7, 1, 12), 4
    stream = BucketStream(counts, 5, per_update)
    assert stream.updates_per_epoch == 2 + 1 + 3
    starts = np.cumsum([0, *counts])
    orders = []
    for epoch in range(3):
        updates = range(epoch * 6, epoch * 6 + 6)
        drawn = {u: [stream.index(u, slot) for slot in range(per_update)] for u in updates}
        for update, items in drawn.items():
            bucket = stream.bucket(update)
            more = [stream.index(update, slot) for slot in range(4, 9)]
            assert all(starts[bucket] <= item < starts[bucket + 1] for item in items + more)
        found = Counter(item for items in drawn.values() for item in items)
        assert set(found) == set(range(20))
        assert sum(found.values()) == 24
        assert all(found[item] == 1 for item in range(8, 20))  # a bucket that divides is met once
        assert sorted(stream.bucket(u) for u in updates) == [0, 0, 1, 2, 2, 2]
        orders.append(tuple(tuple(items) for items in drawn.values()))
    assert len(set(orders)) == 3
    again = BucketStream(counts, 5, per_update)
    assert [again.index(17, slot) for slot in (3, 0)] == [orders[2][5][3], orders[2][5][0]]
    assert type(stream_of(20, (), 5, 4)) is Stream
    assert isinstance(stream_of(20, counts, 5, 4), BucketStream)


def test_a_fault_gives_way_to_an_image_of_the_same_shape(tmp_path):
    whole = encoded(60, 128, 1)
    broken = {f"row{number}": whole[: len(whole) // 2] for number in (2, 9, 16)}  # their heads are whole
    source = BucketedImages(write(tmp_path / "a.parquet", **broken), "image", "text", bucket_sizes(64, 8))
    assert source.left_out == 0
    assert counts_of(source) == source.counts
    stream = stream_of(len(source), source.counts, 0, 4)
    skipped = 0
    for update in range(30):
        found = read(source, [stream.index(update, slot) for slot in range(4)], 0, update, range(4))
        assert len(found.batch) == 4
        skipped += len(found.skipped)
    assert skipped > 5


@pytest.mark.parametrize("method", ["standard", "sft"])
def test_training_on_other_shapes_tells_the_model_their_sizes(policy, brightness, method):
    from sharpening.methods import load_method, options_class

    pictures = np.random.default_rng(0).integers(0, 256, (3, 1, 40, 96, 3), dtype=np.uint8)
    sizes = np.array([[100, 250, 0, 3, 40, 96], [40, 96, 0, 0, 40, 96], [80, 192, 1, 0, 40, 96]])
    batch = Batch(["a", "b", "c"], pictures, sizes)
    own = options_class(method)(timesteps_per_image=2, proportion_empty_prompts=0.5, rollout_steps=4)
    learner = load_method(method, own)
    experience = learner.collect(policy, policy.frozen_copy(), brightness, batch, Seeds(1, 0, (0, 1, 2)))
    assert experience.x_t.shape[-2:] == (5, 12)
    assert experience.condition.time_ids.tolist() == sizes.tolist()
    loss = learner.loss(policy, experience)
    policy.denoiser.requires_grad_(True)
    learner.loss(policy, experience).value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.denoiser.parameters())
    other = learner.collect(
        policy, policy.frozen_copy(), brightness, Batch(batch.prompts, pictures, sizes + 50), Seeds(1, 0, (0, 1, 2))
    )
    assert learner.loss(policy, other).value.item() != pytest.approx(loss.value.item(), rel=1e-6)
    with pytest.raises(ValueError, match="draws no 39 × 96 pixels; pass a multiple of 8"):
        policy.encode_images(pictures[:, 0, :39])
