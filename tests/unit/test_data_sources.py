"""Training data: image and pair files, what they refuse, their memory, and the embedded world as a data set."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sharpening.data import parquet
from sharpening.data.images import ImageFile, write_images
from sharpening.data.pairs import PairFile, write_pairs
from sharpening.data.prompts import PromptStream, Stream
from sharpening.data.source import Batch, DataFileError, PromptSource
from sharpening.shapes.benchmark import benchmark, validation_benchmark
from sharpening.shapes.dataset import EmbeddedImages, main
from sharpening.shapes.scene import Scene, Thing, held_out


def picture(number: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def image_rows(count: int) -> list[dict]:
    return [{"image": encoded(picture(i)), "text": f"picture {i}"} for i in range(count)]


def pair_rows(count: int) -> list[dict]:
    return [
        {
            "jpg_0": encoded(picture(i)),
            "jpg_1": encoded(picture(100 + i)),
            "label_0": float(i % 2),
            "caption": f"pair {i}",
        }
        for i in range(count)
    ]


def save(path, rows, row_group_size=4, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size, **options)
    return path


def refused(function, *arguments):
    with pytest.raises(DataFileError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    return message


# -- images --------------------------------------------------------------------------------------------------------


def test_images_are_read_in_any_order(tmp_path):
    source = ImageFile(save(tmp_path / "a.parquet", image_rows(11)), "image", "text", 16)
    assert len(source) == 11
    batch = source.batch([10, 0, 3, 4, 3])
    assert batch.images.shape == (5, 1, 16, 16, 3)
    for place, number in enumerate([10, 0, 3, 4, 3]):
        np.testing.assert_array_equal(batch.images[place, 0], picture(number))
        assert batch.prompts[place] == source.prompts([number])[0] == f"picture {number}"
    for number in (-1, 11):
        with pytest.raises(IndexError, match="rows 0 to 10"):
            source.batch([number])


def test_structs_of_datasets_jpeg_and_modes(tmp_path):
    jpeg = encoded(picture(1), "JPEG", quality=95)
    transparent = BytesIO()
    Image.fromarray(np.dstack([picture(2), np.full((16, 16), 9, np.uint8)])).save(transparent, "PNG")
    grey = encoded(picture(3)[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6  # the viewer turns the picture a quarter clockwise
    contents = [jpeg, transparent.getvalue(), grey, encoded(picture(4), exif=turned)]
    rows = [{"image": {"bytes": c, "path": None}, "text": " a\n", "other": 1} for c in contents]
    source = ImageFile(save(tmp_path / "a.parquet", rows), "image", "text", 16)
    images = source.batch(range(4)).images[:, 0]
    np.testing.assert_array_equal(images[0], np.asarray(Image.open(BytesIO(jpeg))))
    np.testing.assert_array_equal(images[1], picture(2))
    np.testing.assert_array_equal(images[2], np.repeat(picture(3)[..., :1], 3, axis=2))
    np.testing.assert_array_equal(images[3], np.rot90(picture(4), -1))
    assert source.prompts([0]) == ["a"]


def test_large_binary_and_dictionary_captions(tmp_path):
    table = pa.table(
        {
            "image": pa.array([encoded(picture(0))] * 2, pa.large_binary()),
            "text": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = ImageFile(tmp_path / "a.parquet", "image", "text", 16)
    assert source.prompts([1, 0]) == ["b", "a"]
    np.testing.assert_array_equal(source.batch([1]).images[0, 0], picture(0))


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33), (20, 97), (24, 24), (7, 10)])
def test_resized_and_cropped_as_torchvision_does(tmp_path, size):
    from torchvision import transforms

    mode = transforms.InterpolationMode.LANCZOS
    expected = transforms.Compose([transforms.Resize(24, interpolation=mode), transforms.CenterCrop(24)])
    rows = [{"image": encoded(picture(0, *size)), "text": "a"}]
    found = ImageFile(save(tmp_path / "a.parquet", rows), "image", "text", 24).batch([0]).images[0, 0]
    np.testing.assert_array_equal(found, np.asarray(expected(Image.fromarray(picture(0, *size)))))


def test_files_and_columns_that_are_refused(tmp_path):
    path = save(tmp_path / "a.parquet", [{"image": encoded(picture(0)), "text": "a", "n": 1}])
    assert "no column 'picture'; choose one of: image, text, n" in refused(ImageFile, path, "picture", "text", 16)
    assert "no column 'caption'; choose one of: image, text, n" in refused(ImageFile, path, "image", "caption", 16)
    assert "holds int64, not image bytes" in refused(ImageFile, path, "n", "text", 16)
    assert "holds int64, not text" in refused(ImageFile, path, "image", "n", 16)
    assert "there is no file" in refused(ImageFile, tmp_path / "absent.parquet", "image", "text", 16)
    (tmp_path / "none").mkdir()
    assert "holds no training data" in refused(ImageFile, tmp_path / "none", "image", "text", 16)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet" in refused(ImageFile, broken, "image", "text", 16)
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}), empty)
    assert "holds no rows" in refused(ImageFile, empty, "image", "text", 16)


def broken_image(kind: str) -> bytes | None:
    whole = encoded(picture(5))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    return {
        "none": None,
        "empty": b"",
        "text": b"not an image",
        "cut": whole[: len(whole) // 2],
        "damaged": bytes(damaged),
        "gif": encoded(picture(5), "GIF"),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "empty", "text", "cut", "damaged", "gif"])
def test_broken_images_are_refused_with_their_row(tmp_path, kind):
    rows = image_rows(11)
    rows[9]["image"] = broken_image(kind)
    source = ImageFile(save(tmp_path / "a.parquet", rows), "image", "text", 16)
    message = refused(source.batch, [1, 9])
    assert "row 9 (the first is 0)" in message
    assert ("no image bytes" if kind in ("none", "empty") else "no whole PNG, JPEG or WebP image") in message
    assert len(source.batch([8, 10])) == 2


def test_a_cut_jpeg_is_refused_when_it_is_read(tmp_path):
    rows = [{"image": encoded(picture(0, 64, 64), "JPEG")[:-300], "text": "a"}]
    source = ImageFile(save(tmp_path / "a.parquet", rows), "image", "text", 16)
    assert "row 0" in refused(source.batch, [0])


@pytest.mark.parametrize("caption", [None, " \n"])
def test_missing_captions_are_refused_with_their_row(tmp_path, caption):
    rows = image_rows(6)
    rows[4]["text"] = caption
    source = ImageFile(save(tmp_path / "a.parquet", rows), "image", "text", 16)
    assert "row 4 (the first is 0)" in refused(source.batch, [4])
    assert "no caption in column 'text'" in refused(source.prompts, [4])


# -- pairs ---------------------------------------------------------------------------------------------------------


def test_pick_a_pic_pairs_are_ordered_by_their_label(tmp_path):
    source = PairFile(save(tmp_path / "a.parquet", pair_rows(6)), "caption", 16)
    batch = source.batch([5, 2])
    assert batch.prompts == ["pair 5", "pair 2"]
    np.testing.assert_array_equal(batch.images[0], [picture(5), picture(105)])  # label 1: the first is preferred
    np.testing.assert_array_equal(batch.images[1], [picture(102), picture(2)])  # label 0: the second is


def test_plain_pairs_and_what_write_pairs_writes(tmp_path):
    rows = [
        {"image_w": picture(i), "image_l": picture(9 - i), "caption": f"pair {i}", "reward_w": i / 2} for i in range(4)
    ]
    write_pairs(tmp_path / "a.parquet", rows)
    source = PairFile(tmp_path / "a.parquet", "caption", 16)
    np.testing.assert_array_equal(source.batch([3]).images[0], [picture(3), picture(6)])
    assert pq.read_table(tmp_path / "a.parquet")["reward_w"].to_pylist() == [0, 0.5, 1, 1.5]
    structs = [{"image_w": {"bytes": encoded(picture(1)), "path": "x.png"}} for _ in range(1)]
    structs[0] |= {"image_l": {"bytes": encoded(picture(2)), "path": None}, "prompt": "a"}
    source = PairFile(save(tmp_path / "b.parquet", structs), "prompt", 16)
    np.testing.assert_array_equal(source.batch([0]).images[0], [picture(1), picture(2)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label_0": 0.5}, "is a tie (label_0 is 0.5)"),
        ({"label_0": None}, "has label_0 None; write 1 (jpg_0 preferred) or 0 (jpg_1 preferred)"),
        ({"label_0": float("nan")}, "has label_0 nan"),
        ({"jpg_1": None}, "no image bytes in column 'jpg_1'"),
        ({"jpg_0": b"GIF89a"}, "no whole PNG, JPEG or WebP image in column 'jpg_0'"),
        ({"jpg_0": encoded(picture(107))}, "the same image on both sides"),
        ({"caption": None}, "no caption"),
    ],
)
def test_bad_pairs_are_refused_with_their_row(tmp_path, change, words):
    rows = pair_rows(9)
    rows[7] |= change
    source = PairFile(save(tmp_path / "a.parquet", rows), "caption", 16)
    message = refused(source.batch, [7])
    assert "row 7 (the first is 0)" in message
    assert words in message


def test_pairs_need_their_columns(tmp_path):
    path = save(tmp_path / "a.parquet", [{"jpg_0": b"", "jpg_1": b"", "caption": "a"}])
    message = refused(PairFile, path, "caption", 16)
    assert (
        "has the columns jpg_0, jpg_1, caption; preference pairs need image_w and image_l, or jpg_0, jpg_1" in message
    )
    path = save(tmp_path / "b.parquet", [{"image_w": b"", "image_l": "x", "caption": "a"}])
    assert "'image_l'" in refused(PairFile, path, "caption", 16)
    assert "no column 'text'" in refused(PairFile, save(tmp_path / "c.parquet", pair_rows(2)), "text", 16)


# -- batches and prompts -------------------------------------------------------------------------------------------


def test_prompt_source_and_select():
    source = PromptSource(["a", "b", "c"])
    batch = source.batch([2, 0])
    assert (source.kind, len(source), batch.prompts, batch.images.shape) == ("prompts", 3, ["c", "a"], (2, 0, 0, 0, 3))
    assert batch.select([1]).images.shape == (1, 0, 0, 0, 3)
    images = np.stack([[picture(i), picture(i + 1)] for i in range(3)])
    part = Batch(["a", "b", "c"], images).select([2, 0, 2])
    assert part.prompts == ["c", "a", "c"]
    np.testing.assert_array_equal(part.images[:, 1], [picture(3), picture(1), picture(3)])
    assert len(part.select([])) == len(part.select([]).images) == 0


def test_stream_of_indices_is_the_stream_of_prompts():
    prompts = [f"prompt {i}" for i in range(7)]
    stream, of_prompts = Stream(7, 5, 3), PromptStream(prompts, 5, 3)
    for update in range(9):
        for slot in range(5):
            assert prompts[stream.index(update, slot)] == of_prompts.prompt(update, slot)
            assert stream.index(update, slot) == of_prompts.index(update, slot)
    with pytest.raises(ValueError, match="at least one"):
        Stream(0, 0, 1)


# -- scale ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """96 MiB of images in 24 row groups."""
    folder = tmp_path_factory.mktemp("heavy")
    padding = np.random.default_rng(0)  # decoders stop at a PNG's end
    table = pa.Table.from_pylist([row | {"image": row["image"] + padding.bytes(2**18)} for row in image_rows(384)])
    pq.write_table(table, folder / "many.parquet", 16, use_dictionary=False)
    return folder


MEMORY = r"""
import re, sys
import numpy as np
from sharpening.data import parquet
from sharpening.data.images import ImageFile

def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024

parquet.CACHE_BYTES = 9 * 2**20
source = ImageFile(sys.argv[1], "image", "text", 16)
np.random.default_rng(0).permutation(2)
opened = peak()
assert source.prompts(range(0, 384, 5)) == [f"picture {i}" for i in range(0, 384, 5)]
captions = peak()
for index in np.random.default_rng(0).permutation(384)[:100].tolist():
    assert source.batch([index]).images.shape == (1, 1, 16, 16, 3)
print(captions - opened, peak() - opened)
"""


def peak_growth(path) -> tuple[float, float]:
    """MiB that a fresh process grows by for captions alone, and in all; Arrow's buffers are in no Python account."""
    command = [sys.executable, "-c", MEMORY, str(path)]
    captions, everything = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(captions), float(everything)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")


@needs_proc
def test_memory_does_not_grow_with_the_file(heavy, capsys):
    captions, everything = peak_growth(heavy / "many.parquet")
    with capsys.disabled():
        print(f"\n96 MiB file: captions {captions:.0f}, random reads {everything:.0f} MiB")
    assert captions < 16
    assert everything < 48


def test_large_row_groups_are_refused_at_once(heavy, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES_LIMIT", 2**22)
    assert "in row group 0, which would be read whole" in refused(
        ImageFile, heavy / "many.parquet", "image", "text", 16
    )
    monkeypatch.setattr(parquet, "GROUP_BYTES_LIMIT", 2**23)
    ImageFile(heavy / "many.parquet", "image", "text", 16)


def test_a_row_group_is_read_once_and_then_remembered(tmp_path, monkeypatch):
    source = ImageFile(save(tmp_path / "a.parquet", image_rows(12)), "image", "text", 16)
    read = []
    original = pq.ParquetFile.read_row_group

    def counted(self, group, **options):
        read.append((group, tuple(options["columns"])))
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    source.batch([0, 9, 1, 8, 2])
    assert read == [(0, ("image",)), (2, ("image",)), (0, ("text",)), (2, ("text",))]
    source.batch([3, 10])
    assert len(read) == 4
    source.batch([4])
    assert read[4:] == [(1, ("image",)), (1, ("text",))]
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1)
    del read[:]
    ImageFile(tmp_path / "a.parquet", "image", "text", 16).batch(
        [5, 0, 9, 1, 8, 2]
    )  # once each, even where only one can be kept
    assert [group for group, columns in read if columns == ("image",)] == [0, 1, 2]


def test_the_cache_keeps_what_was_read_last(tmp_path, monkeypatch):
    rows = parquet.RowFile(save(tmp_path / "a.parquet", image_rows(24)))
    rows.rows([0], ["image"])
    monkeypatch.setattr(parquet, "CACHE_BYTES", int(2.5 * rows._cache.kept))
    read, original = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **b: read.append(a[1]) or original(*a, **b))
    for index in (4, 8, 12, 16, 12, 17, 8, 12):
        rows.rows([index], ["image"])
    assert read == [1, 2, 3, 4, 2, 3]


ROWS, PER_UPDATE, RESUMED, LAST = 10_000_000, 8, 4_000, 1_249_999
"""Of the large file: its rows, and an update to resume at and the last one of its first epoch."""
RESUME = r"""
import json, re, sys
from sharpening.data.images import ImageFile
from sharpening.data.prompts import Stream

def kib(name):
    return int(re.search(name + r":\s+(\d+) kB", open("/proc/self/status").read())[1])

def batch(update):
    found = source.batch([stream.index(update, slot) for slot in range(stream.per_update)])
    return found.prompts, found.images.tolist(), kib("VmHWM") - before

before = kib("VmRSS")
source = ImageFile(sys.argv[1], "image", "text", 4)
stream = Stream(len(source), 3, int(sys.argv[2]))
print(json.dumps([len(source), *(batch(int(update)) for update in sys.argv[3:])]))
"""


@pytest.fixture(scope="module")
def ten_million_rows(tmp_path_factory):
    """10⁷ rows of five pictures and the row's number, some 100 MiB."""
    path, per_group = tmp_path_factory.mktemp("many") / "many.parquet", 1000  # as `write_images` has them
    images = pa.array([encoded(picture(number, 4, 4)) for number in range(5)] * (per_group // 5))
    schema = pa.schema({"image": pa.binary(), "text": pa.string()})
    with pq.ParquetWriter(path, schema, use_dictionary=["image"], write_statistics=False) as writer:
        for start in range(0, ROWS, per_group):
            texts = pa.array(np.arange(start, start + per_group)).cast(pa.string())
            writer.write_table(pa.table({"image": images, "text": texts}))
    yield path
    path.unlink()  # pytest keeps the folders of three runs


@needs_proc
def test_ten_million_rows_are_resumed_anywhere_in_constant_memory(ten_million_rows, capsys):
    command = [sys.executable, "-c", RESUME, str(ten_million_rows), *map(str, (PER_UPDATE, 0, RESUMED, LAST))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count, *batches = json.loads(done.stdout)
    assert count == ROWS
    growth = [kib / 1024 for _, _, kib in batches]
    with capsys.disabled():
        print(f"\n10⁷ rows: {growth[0]:.0f} MiB until the first batch, {growth[2]:.0f} MiB after two resumes")
    assert growth[2] < 64  # without the reading, a permutation alone has 76 MiB
    # Read from the start, in this process.
    stream = Stream(ROWS, 3, PER_UPDATE)
    walked = [stream.index(update, slot) for update in range(RESUMED + 1) for slot in range(PER_UPDATE)]
    assert len(set(walked)) == len(walked)
    pictures = [picture(number, 4, 4).tolist() for number in range(5)]
    for (prompts, images, _), indices in zip(batches, (walked[:PER_UPDATE], walked[-PER_UPDATE:]), strict=False):
        assert prompts == [str(index) for index in indices]
        assert images == [[pictures[index % 5]] for index in indices]
    assert not set(map(int, batches[2][0])) & set(walked)  # as far as that is from the others in the epoch


# -- processes -----------------------------------------------------------------------------------------------------


def test_sources_travel(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    save(tmp_path / "images.parquet", image_rows(40), 40)
    save(tmp_path / "pairs.parquet", pair_rows(5))
    monkeypatch.chdir(tmp_path)
    sources = [
        PromptSource(["a", "b", "c", "d", "e"]),
        ImageFile("images.parquet", "image", "text", 16),
        PairFile("pairs.parquet", "caption", 16),
        EmbeddedImages(5, seed=2),
    ]
    before = [source.batch([4, 1]) for source in sources]
    contents = pickle.dumps(sources)
    assert len(contents) < 5000  # no row of any file
    monkeypatch.chdir(folder)
    for expected, source in zip(before, pickle.loads(contents), strict=True):
        found = source.batch([4, 1])
        assert found.prompts == expected.prompts
        np.testing.assert_array_equal(found.images, expected.images)


def test_no_torch_is_imported():
    modules = "sharpening.data.images, sharpening.data.pairs, sharpening.shapes.dataset"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- writing -------------------------------------------------------------------------------------------------------


def test_written_row_groups_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "WRITTEN_GROUP_ROWS", 8)
    rows = ({"image": picture(i), "text": f"{i}"} for i in range(20))
    write_images(tmp_path / "a.parquet", rows)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(3)] == [8, 8, 4]
    monkeypatch.setattr(parquet, "WRITTEN_GROUP_BYTES", 2 * len(encoded(picture(0))) - 100)
    write_images(tmp_path / "a.parquet", ({"image": picture(i), "text": f"{i}"} for i in range(5)))
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(3)] == [2, 2, 1]
    source = ImageFile(tmp_path / "a.parquet", "image", "text", 16)
    np.testing.assert_array_equal(source.batch(range(5)).images[:, 0], [picture(i) for i in range(5)])


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"old")

    def rows():
        yield from ({"image": picture(i), "text": "a"} for i in range(1500))
        raise RuntimeError("the reward is down")

    with pytest.raises(RuntimeError, match="down"):
        write_images(path, rows())
    with pytest.raises(ValueError, match="no rows"):
        write_images(path, [])
    with pytest.raises(ValueError, match="lack text"):
        write_images(path, [{"image": picture(0)}])
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    assert path.read_bytes() == b"old"


# -- the embedded world --------------------------------------------------------------------------------------------


def test_embedded_images_are_those_of_the_written_file(tmp_path):
    path = tmp_path / "world.parquet"
    main(["--output", str(path), "--count", "40", "--seed", "3"])
    world, file = EmbeddedImages(40, seed=3), ImageFile(path, "image", "text", 64)
    assert len(world) == len(file) == 40
    indices = np.random.default_rng(0).permutation(40).tolist()
    expected, found = world.batch(indices), file.batch(indices)
    assert expected.prompts == found.prompts == world.prompts(indices)
    np.testing.assert_array_equal(expected.images, found.images)
    assert len(np.unique(expected.images.reshape(40, -1), axis=0)) == 40
    for index, text in enumerate(pq.read_table(path)["scene"].to_pylist()):
        fields = json.loads(text)
        scene = Scene(tuple(Thing(**thing) for thing in fields["things"]), fields["background"])
        assert scene == world.example(index)[0]


def test_embedded_examples_depend_on_seed_and_place_alone():
    world = EmbeddedImages(100, seed=1)
    np.testing.assert_array_equal(world.batch([7]).images[0], EmbeddedImages(8, seed=1).batch([3, 7]).images[1])
    assert world.prompts(range(100)) != EmbeddedImages(100, seed=2).prompts(range(100))
    with pytest.raises(IndexError, match="examples 0 to 99"):
        world.batch([100])


def test_no_benchmark_prompt_and_no_held_out_combination():
    taken = {prompt.prompt for prompt in benchmark() + validation_benchmark()}
    world = EmbeddedImages(5000, seed=0)
    examples = [world.example(index) for index in range(5000)]
    assert not any(held_out(scene) for scene, _ in examples)
    assert not taken & {caption for _, caption in examples}
    assert len({json.dumps(dataclasses.asdict(scene)) for scene, _ in examples}) == 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--output", "a.parquet", "--count", "0"], "--count 0"), (["--output", "no/such/a.parquet"], "no folder")],
)
def test_the_command_refuses_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err
