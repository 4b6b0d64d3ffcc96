"""Folders of images, tar shards, several files, data sets of `datasets`: each gives the rows that were put in."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sharpening.data.images import ImageFile
from sharpening.data.opening import open_rows
from sharpening.data.pairs import PairFile
from sharpening.data.parquet import RowFile
from sharpening.data.rows import ChosenRows, JoinedRows
from sharpening.data.source import DataFileError, ExampleError
from sharpening.data.tar import TarRows

SIZE = 16


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def encoded(number: int, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture(number)).save(buffer, kind)
    return buffer.getvalue()


def refused(path: Path) -> str:
    with pytest.raises(DataFileError) as caught:
        open_rows(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    assert str(path) in message
    return message


def check(path: Path, numbers: range | list[int], caption: str = "text") -> ImageFile:
    """Pictures and captions are those of the numbers, in this order and in any other, here and after pickling."""
    source = ImageFile(path, "image", caption, SIZE)
    assert len(source) == len(numbers)
    order = np.random.default_rng(0).permutation(len(numbers)).tolist() + [0]
    for known in (source, pickle.loads(pickle.dumps(source))):
        batch = known.batch(order)
        assert batch.prompts == known.prompts(order) == [f"picture {numbers[i]}" for i in order]
        np.testing.assert_array_equal(batch.images[:, 0], [picture(numbers[i]) for i in order])
    with pytest.raises(IndexError, match=f"rows 0 to {len(numbers) - 1}, not {len(numbers)}"):
        source.batch([len(numbers)])
    return source


# -- a folder of images --------------------------------------------------------------------------------------------


def write_folder(folder: Path, numbers: list[int] | range, kind: str = "jsonl") -> Path:
    folder.mkdir(parents=True)
    entries = []
    for number in numbers:
        name = f"sub/{number:04}.png" if number % 2 else f"{number:04}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encoded(number))
        entries.append({"file_name": name, "text": f"picture {number}", "score": number})
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n")
    else:
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "score"])
            writer.writeheader()
            writer.writerows(entries)
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_of_images_with_metadata(tmp_path, kind):
    source = check(write_folder(tmp_path / "a", range(7), kind), range(7))
    assert source.file.schema.names == ["image", "text", "score"]
    assert len(pickle.dumps(source)) < 2000  # the metadata are read again where it is unpickled


def test_folders_in_folders(tmp_path):
    write_folder(tmp_path / "a" / "train", range(3))
    write_folder(tmp_path / "a" / "validation", range(50, 52))
    check(tmp_path / "a", range(3))
    write_folder(tmp_path / "b" / "first", range(3))
    write_folder(tmp_path / "b" / "second", range(3, 5), "csv")
    source = check(tmp_path / "b", range(5))
    assert "row 1 (the first is 0)" in source.file.where(4)
    assert "second/metadata.csv" in source.file.where(4)


def test_images_that_a_folder_lacks_are_faults_of_their_rows(tmp_path):
    folder = write_folder(tmp_path / "a", range(4))
    (folder / "0002.png").unlink()
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines += [json.dumps({"file_name": name, "text": "a"}) for name in ("../a/0000.png", "/etc/passwd", None, 3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    source = ImageFile(folder, "image", "text", SIZE)
    for index in (2, 4, 5, 6, 7):
        with pytest.raises(ExampleError) as caught:
            source.batch([index])
        assert caught.value.reason == "missing image"
        assert "; leave the row out" in str(caught.value) or "or leave the row out" in str(caught.value)
    assert len(source.batch([0, 1, 3])) == 3


def test_pairs_out_of_a_folder(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    entries = [{"image_w_file_name": f"{2 * i}.png", "image_l_file_name": f"{2 * i + 1}.png", "c": "a"} for i in (0, 1)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    np.testing.assert_array_equal(PairFile(tmp_path, "c", SIZE).batch([1]).images[0], [picture(2), picture(3)])


def test_metadata_that_are_refused(tmp_path):
    file = tmp_path / "metadata.jsonl"
    for content, words in (
        (b"", "holds no rows"),
        (b'{"file_name": "a.png"\n', "line 1 is not JSON"),
        (b'{"file_name": "a.png"}\n[1]\n', "line 2 is not a JSON object"),
        (b'{"image": "a.png", "text": "a"}\n', "no column 'file_name', only image, text"),
        ('{"file_name": "grün"}'.encode("latin-1"), "not UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataFileError, match=words):
            open_rows(tmp_path)


# -- tar shards ----------------------------------------------------------------------------------------------------


def write_tar(path: Path, files: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, contents in files.items():
            contents = contents.encode() if isinstance(contents, str) else contents
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def shard(numbers: range) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for number in numbers:
        files |= {f"data/{number:06}.png": encoded(number), f"data/{number:06}.txt": f"picture {number}\n"}
    return files


def test_tar_shards(tmp_path):
    check(write_tar(tmp_path / "one.tar", shard(range(5))), range(5))
    (tmp_path / "many").mkdir()
    write_tar(tmp_path / "many" / "00000.tar", shard(range(5)))
    write_tar(tmp_path / "many" / "00001.tar", shard(range(5, 8)))
    source = check(tmp_path / "many", range(8))
    assert "row 2 (the first is 0) of" in source.file.where(7)
    assert "00001.tar" in source.file.where(7)


def test_only_the_files_asked_for_are_read(tmp_path):
    class Counted(io.FileIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    read: list[int] = []
    rows = TarRows(write_tar(tmp_path / "a.tar", shard(range(20))))
    rows.path = type("Place", (), {"open": lambda self, *_, **__: Counted(tmp_path / "a.tar")})()
    assert rows.rows([17], ["text"]) == [{"text": "picture 17\n"}]
    assert rows.rows([3], ["image"]) == [{"image": encoded(3)}]
    assert read == [len("picture 17\n"), len(encoded(3))]


def test_captions_in_json_and_examples_that_lack_a_file(tmp_path):
    files: dict[str, bytes | str] = {
        "a.jpg": encoded(0, "JPEG"), "a.json": json.dumps({"caption": "ein grüner Kreis", "width": 16}),
        "b.json": json.dumps({"caption": "b"}),
        "c.jpeg": encoded(1, "JPEG"),
        "d.webp": encoded(2, "WEBP"), "d.json": "{broken",
        "README": "no example", ".hidden.png": b"", "e.cls": "3",
    }  # fmt: skip
    source = ImageFile(write_tar(tmp_path / "a.tar", files), "image", "caption", SIZE)
    assert len(source) == 4
    assert source.file.schema.names == ["image", "caption"]
    assert source.batch([0]).prompts == ["ein grüner Kreis"]
    np.testing.assert_array_equal(source.batch([0]).images[0, 0], np.asarray(Image.open(BytesIO(encoded(0, "JPEG")))))
    for index, reason in ((1, "missing image"), (2, "empty caption"), (3, "empty caption")):
        with pytest.raises(ExampleError) as caught:
            source.batch([index])
        assert caught.value.reason == reason


def test_pairs_out_of_a_tar(tmp_path):
    files = {"a.image_w.png": encoded(1), "a.image_l.png": encoded(2), "a.caption.txt": "a"}
    batch = PairFile(write_tar(tmp_path / "a.tar", files), "caption", SIZE).batch([0])
    np.testing.assert_array_equal(batch.images[0], [picture(1), picture(2)])


def test_tar_files_that_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", shard(range(5)))
    whole = path.read_bytes()
    end = whole.index(b"data/000004.png")
    for name, contents in (("block", whole[: end + 700]), ("member", whole[: end + 1024]), ("text", b"no tar\n" * 512)):
        broken = tmp_path / f"{name}.tar"
        broken.write_bytes(contents)
        assert "not a whole uncompressed tar" in refused(broken), name
    assert "without compression" in refused(write_tar(tmp_path / "b.tar.gz", shard(range(2)), "w:gz"))
    assert "holds no example" in refused(write_tar(tmp_path / "c.tar", {"README": "nothing"}))
    assert "there is no file" in refused(tmp_path / "absent.tar")


# -- several files, a choice ---------------------------------------------------------------------------------------


def write_parquet(path: Path, numbers: range) -> Path:
    rows = [{"image": encoded(i), "text": f"picture {i}"} for i in numbers]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_parquet_files_of_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", range(5))
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", range(5, 9))
    check(tmp_path, range(9))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data" / "train-00002.parquet")
    with pytest.raises(DataFileError, match="no column 'image'; choose one of: text"):
        ImageFile(tmp_path, "image", "text", SIZE)


def test_files_of_a_folder_share_one_cache_and_few_handles(tmp_path, monkeypatch):
    from sharpening.data import parquet

    for number in range(6):
        write_parquet(tmp_path / f"{number}.parquet", range(2 * number, 2 * number + 2))
    monkeypatch.setattr(parquet, "OPEN_FILES", 2)
    rows = open_rows(tmp_path)
    assert isinstance(rows, JoinedRows)
    cache = rows._parts[0]._cache
    assert all(part._cache is cache for part in rows._parts)
    monkeypatch.setattr(parquet, "CACHE_BYTES", 2500)  # two or three groups of two images
    for index in (0, 11, 5, 3, 8, 0):
        assert rows.rows([index], ["image"]) == [{"image": encoded(index)}]
        assert cache.kept <= 2500
        assert len(cache._files) <= 2
    known = pickle.loads(pickle.dumps(rows))
    assert known._parts[0]._cache is known._parts[5]._cache is not cache
    assert known._parts[0]._cache.kept == 0


def test_a_choice_is_random_fixed_and_without_repeats(tmp_path):
    rows = RowFile(write_parquet(tmp_path / "a.parquet", range(30)))
    chosen = ChosenRows(rows, 12, seed=3)
    texts = [row["text"] for row in chosen.rows(range(12), ["text"])]
    assert max(Counter(texts).values()) == 1
    assert texts == [row["text"] for row in ChosenRows(rows, 12, seed=3).rows(range(12), ["text"])]
    assert texts != [row["text"] for row in ChosenRows(rows, 12, seed=4).rows(range(12), ["text"])]
    assert len(ChosenRows(rows, 99, seed=0)) == 30
    assert f"row {texts[5].removeprefix('picture ')} " in chosen.where(5)
    joined = JoinedRows(tmp_path, [rows, chosen])
    assert joined.rows([35, 2], ["text"]) == [{"text": texts[5]}, {"text": "picture 2"}]


def test_what_holds_no_data_is_refused(tmp_path):
    assert "holds no training data; pass a .parquet or .tar file" in refused(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "is no data file; pass" in refused(tmp_path / "a.zip")


# -- the library `datasets` ----------------------------------------------------------------------------------------


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


def small(datasets, count: int = 6):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {
        "image": [{"bytes": encoded(i), "path": None} for i in range(count)],
        "text": [f"picture {i}" for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_saved_data_sets(datasets, tmp_path):
    data = small(datasets)
    data.save_to_disk(tmp_path / "a")
    source = check(tmp_path / "a", range(6))
    assert len(pickle.dumps(source)) < 2000
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "b")
    check(tmp_path / "b", range(6))
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "c")
    assert "has no split 'train', only test" in refused(tmp_path / "c")


def test_a_folder_of_files_by_the_name_of_a_data_set(datasets, tmp_path):
    from sharpening.data.hub import DatasetRows

    (tmp_path / "files").mkdir()
    small(datasets).to_parquet(tmp_path / "files" / "train-00000.parquet")
    rows = DatasetRows(str(tmp_path / "files"))
    np.testing.assert_array_equal(ImageFile(rows, "image", "text", SIZE).batch([4]).images[0, 0], picture(4))
    write_folder(tmp_path / "pictures", range(3))  # images that are files stay files until they are asked for
    rows = DatasetRows(str(tmp_path / "pictures"))
    found = rows.rows([2], ["image"])[0]["image"]
    assert found["bytes"] is None
    assert found["path"].endswith("0002.png")
    np.testing.assert_array_equal(ImageFile(rows, "image", "text", SIZE).batch([1]).images[0, 0], picture(1))
    for name, config, words in (
        ("no-such/data-set", None, "no-such/data-set cannot be opened as a data set"),
        (str(tmp_path / "files"), "other", "BuilderConfig 'other' not found"),
    ):
        with pytest.raises(DataFileError, match=words) as caught:
            DatasetRows(name, config)
        assert "\n" not in str(caught.value)


def test_several_captions_and_a_missing_library(datasets, tmp_path, monkeypatch):
    import sys

    from sharpening.data.prompt_rows import PromptRows

    data = datasets.Dataset.from_dict({"captions": [["a", "b"], [" ", "c"], [], [None]]})
    data.save_to_disk(tmp_path / "a")
    source = PromptRows(open_rows(tmp_path / "a"), "captions")
    assert source.prompts([1, 0]) == ["c", "a"]
    for index in (2, 3):
        with pytest.raises(ExampleError, match="no caption"):
            source.prompts([index])
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'trajectory-sharpening[datasets]'" in refused(tmp_path / "a")
