"""What a run learns from: the source its options name, and the pairs that it ranks itself."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import options_class
from rayjobs.runtime.ranked import PAIRS, rank_tasks, training_source, write_ranked
from rayjobs.runtime.training_data import check_source, source_note
from rayjobs.validation import check_buckets
from sharpening.data.source import Batch
from sharpening.evaluation.run_folder import RunFolder
from sharpening.methods.ranking import RankedPairs

IMAGES = np.arange(2 * 2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 2, 8, 8, 3)


def ranked(ties: int = 0, dropped: int = 0, pairs: int = 2) -> RankedPairs:
    return RankedPairs(
        Batch(["a circle", "a cross"][:pairs], IMAGES[:pairs]), list(range(pairs)), np.ones((pairs, 2)),
        list(range(ties)), [(slot, "timeout") for slot in range(dropped)], 10, 4, {"generate": 1.0},
    )  # fmt: skip


def png(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


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


def write_images(folder: Path, texts: list[str]) -> Path:
    """A folder of images with metadata, and the same as a Parquet file."""
    folder.mkdir()
    rows = []
    for number, text in enumerate(texts):
        buffer = BytesIO()
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "PNG")
        (folder / f"{number}.png").write_bytes(buffer.getvalue())
        rows.append({"image": buffer.getvalue(), "text": text})
    lines = [json.dumps({"file_name": f"{number}.png", "text": text}) for number, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.Table.from_pylist(rows), folder.with_suffix(".parquet"))
    return folder


def of(method: str, **changes: object):
    return options_class(method)(resolution=8, **changes)


def test_the_names_of_diffusers_scripts_lead_to_the_same_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", ["a", "b", "c", "d"])
    datasets = pytest.importorskip("datasets")
    file = folder.with_suffix(".parquet")
    datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")).save_to_disk(tmp_path / "saved")
    ways = [
        {"train_data_dir": folder},
        {"train_data": folder},
        {"train_data": file},
        {"dataset_name": tmp_path / "saved"},
    ]
    for way in ways:
        chosen = of("sft", **{name: str(value) for name, value in way.items()})
        check_source(chosen)
        source = training_source(chosen, RunFolder(tmp_path))
        assert source is not None
        batch = source.batch([2, 0])
        assert batch.prompts == ["c", "a"]
        assert np.array_equal(batch.images[:, 0, 0, 0, 0], [2, 0])
    few = [
        training_source(of("sft", train_data_dir=str(folder), max_train_samples=3, seed=seed), RunFolder(tmp_path))
        for seed in (0, 0, 1, 2, 3)
    ]
    texts = [source.prompts(range(3)) for source in few if source]
    assert {len(source) for source in few if source} == {3}
    assert texts[0] == texts[1]
    assert len({tuple(found) for found in texts}) > 2


def test_prompts_of_every_kind_are_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    words = ["a circle", "a cross", "", "a square"]
    (tmp_path / "a.txt").write_text("\n".join(words))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": word}) for word in words))
    pq.write_table(pa.table({"text": words}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": words}).save_to_disk(tmp_path / "saved")
    named = {name: {"prompts": str(tmp_path / name)} for name in ("a.txt", "a.jsonl", "a.parquet", "saved")}
    for name, way in {**named, "name": {"dataset_name": str(tmp_path / "saved")}}.items():
        check_source(of("rlhf", **way))
        source = training_source(of("rlhf", **way), RunFolder(tmp_path))
        assert source is not None
        assert source.kind == "prompts"
        assert source.prompts([len(source) - 1, 0, 1]) == ["a square", "a circle", "a cross"], name
        assert len(source) == (3 if name == "a.txt" else 4)  # a blank line is no prompt, a blank field is a bad one
        few = training_source(of("rlhf", **way, max_train_samples=2), RunFolder(tmp_path))
        assert few is not None
        assert len(few) == 2
    tasks = rank_tasks(options(prompts=str(tmp_path / "a.jsonl"), caption_column="text"))
    assert [prompt for task in tasks for prompt in task.prompts if not prompt] == []
    assert sum(len(task.prompts) for task in tasks) == 4


def test_pairs_by_the_name_of_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    picture = write_images(tmp_path / "images", ["a", "b"])
    row = {"jpg_0": [(picture / "0.png").read_bytes()], "jpg_1": [(picture / "1.png").read_bytes()], "label_0": [0]}
    datasets.Dataset.from_dict({**row, "caption": ["a circle"]}).save_to_disk(tmp_path / "saved")
    chosen = of("dpo", dataset_name=str(tmp_path / "saved"))
    check_source(chosen)
    source = training_source(chosen, RunFolder(tmp_path))
    assert source is not None
    assert np.array_equal(source.batch([0]).images[0, :, 0, 0, 0], [1, 0])


@pytest.mark.parametrize(
    ("method", "changes", "option", "words"),
    [
        ("sft", {"train_data_dir": "images", "caption_column": "words"}, "caption_column", "choose one of: image,"),
        ("sft", {"train_data_dir": "images", "image_column": "jpg"}, "image_column", "no column 'jpg'"),
        ("sft", {"train_data_dir": "images", "image_column": "text"}, "image_column", "not image bytes"),
        ("sft", {"train_data_dir": "empty"}, "train_data_dir", "holds no training data; pass a .parquet"),
        ("sft", {"train_data_dir": "absent"}, "train_data_dir", "there is no file"),
        ("sft", {"train_data": "broken.tar"}, "train_data", "not a whole uncompressed tar file"),
        ("sft", {"train_data": "blank.parquet"}, "caption_column", "no caption in column 'text'"),
        ("sft", {"train_data": "images", "train_data_dir": "images"}, "train_data_dir", "is given beside --train_data"),
        ("sft", {"dataset_name": "no-such/set"}, "dataset_name", "check name and configuration"),
        ("sft", {"train_data": "images", "dataset_config_name": "a"}, "dataset_config_name", "of no data set"),
        ("rlhf", {"dataset_name": "no-such/set"}, "dataset_name", "cannot be opened as a data set"),
        ("rlhf", {"dataset_name": "no-such/set", "prompts": "a.txt"}, "dataset_name", "is given beside --prompts"),
        ("rlhf", {"prompts": "images", "caption_column": "words"}, "caption_column", "no column 'words'"),
        ("rlhf", {"prompts": "odd.csv"}, "prompts", "is no prompt file; pass one that ends in .txt, .jsonl or"),
        ("dpo", {"train_data": "images"}, "train_data", "preference pairs need image_w and image_l"),
        ("dpo", {"dataset_name": "no-such/set"}, "dataset_name", "cannot be opened"),
        ("dpo", {"prompts": "absent.parquet"}, "prompts", "there is no file"),
    ],
)  # fmt: skip
def test_data_that_are_refused(tmp_path: Path, monkeypatch, method, changes, option, words) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", ["a", "b"])
    write_images(tmp_path / "blank", [" ", ""])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with pytest.raises(OptionError) as caught:
        check_source(of(method, **changes))
    line = str(caught.value)
    assert line.startswith(f"--{option}: ")
    assert words in line
    assert "\n" not in line
    assert caught.value.problem.strip()
    assert caught.value.remedy.strip()


def test_buckets_are_opened_by_the_run_and_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", ["a", "b", "c"])
    Image.new("RGB", (20, 10)).save(folder / "0.png")
    (folder / "2.png").write_bytes(b"no image")
    chosen = options_class("standard")(
        resolution=64, train_data_dir=str(folder), aspect_ratio_buckets=True, prompts_per_update=1
    )
    check_source(chosen)
    source = training_source(chosen, RunFolder(tmp_path))
    assert source is not None
    assert source.batch([1]).images.shape == (1, 1, 48, 80, 3)
    assert source_note(source) == (
        "2 images in 2 shapes, width × height: 64×64 (1), 80×48 (1); 1 that cannot be opened are left out"
    )
    assert source_note(training_source(of("rlhf"), RunFolder(tmp_path))) == source_note(None) == ""
    check_buckets(chosen)
    with pytest.raises(OptionError, match="--aspect_ratio_buckets: the embedded images are all squares; leave it out"):
        check_buckets(options_class("standard")(aspect_ratio_buckets=True))
    with pytest.raises(OptionError, match="--aspect_ratio_buckets: pairs that the run draws itself are squares; leave"):
        check_buckets(options_class("dpo")(aspect_ratio_buckets=True))
    model = tmp_path / "model"  # whose patches are of 2 × 2 latent pixels, each of 8 × 8 pixels
    configs = {"transformer": {"in_channels": 4, "patch_size": 2, "pos_embed_max_size": 5}}
    configs |= {"vae": {"latent_channels": 4, "block_out_channels": [1, 2, 3, 4]}}
    for part, config in configs.items():
        (model / part).mkdir(parents=True)
        (model / part / "config.json").write_text(json.dumps(config))
    patched = chosen.model_copy(update={"pretrained_model_name_or_path": str(model)})
    source = training_source(patched, RunFolder(tmp_path))
    assert source is not None
    assert source_note(source).startswith("2 images in 2 shapes, width × height: 64×64 (1), 80×48 (1)")
    (model / "transformer" / "config.json").write_text(json.dumps(configs["transformer"] | {"pos_embed_max_size": 4}))
    assert source_note(training_source(patched, RunFolder(tmp_path))).startswith("2 images in 1 shapes")
    pairs = [{"image_w": png("red"), "image_l": png("blue"), "caption": "a"}]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    chosen = options_class("dpo")(
        resolution=64, train_data=str(tmp_path / "pairs.parquet"), aspect_ratio_buckets=True, prompts_per_update=1
    )
    check_buckets(chosen)
    check_source(chosen)
    assert source_note(training_source(chosen, RunFolder(tmp_path))) == "1 pairs in 1 shapes, width × height: 80×48 (1)"
