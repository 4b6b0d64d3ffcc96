import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sharpening.checks import ModelFolderError, check_clip_folder, check_pipeline_folder, check_safetensors


def write_weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float16)}, path)
    return path


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def make_pipeline(folder: Path) -> Path:
    parts = {"unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler", "tokenizer": "CLIPTokenizer"}
    index = {name: ["library", class_name] for name, class_name in parts.items()}
    folder.mkdir()
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "P", "image_encoder": [None, None], "force_zeros_for_empty_prompt": True, **index})
    )
    write_weights(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def make_clip(folder: Path) -> Path:
    folder.mkdir()
    model_cfg = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "local"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    (folder / "tokenizer.json").write_text("{}")
    write_weights(folder / "open_clip_model.safetensors")
    return folder


def test_whole_safetensors_file_lists_its_tensors(tmp_path: Path) -> None:
    assert check_safetensors(write_weights(tmp_path / "w.safetensors")) == {"a": ("F32", (2, 3)), "b": ("F16", (5,))}


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_safetensors_cut_anywhere_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_weights(tmp_path / "w.safetensors")
    cut(path, keep)
    with pytest.raises(ModelFolderError, match="w.safetensors.*(truncated|no safetensors file).*; "):
        check_safetensors(path)


def test_safetensors_with_extra_bytes_or_wrong_shape_is_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelFolderError, match="bytes past its tensors"):
        check_safetensors(path)
    path.write_bytes(whole.replace(b"[2,3]", b"[2,4]"))
    with pytest.raises(ModelFolderError, match="malformed"):
        check_safetensors(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelFolderError, match="no safetensors file"):
        check_safetensors(path)


def test_whole_folders_pass(tmp_path: Path) -> None:
    assert check_pipeline_folder(make_pipeline(tmp_path / "pipeline"))["_class_name"] == "P"
    assert check_clip_folder(make_clip(tmp_path / "clip"))["model_cfg"]["embed_dim"] == 8


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_pipeline_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_pipeline(tmp_path / "pipeline")
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=Path(name).parts[0]):
        check_pipeline_folder(folder)


def test_pipeline_with_a_truncated_or_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "pipeline")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    other = shard.name.replace("00001-", "00002-")
    index = {"weight_map": {"a": shard.name, "b": other}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFolderError, match="00002-of-00002.safetensors is missing"):
        check_pipeline_folder(folder)
    write_weights(folder / "unet" / other)
    check_pipeline_folder(folder)
    cut(shard, 150)
    with pytest.raises(ModelFolderError, match="00001-of-00002.safetensors is truncated"):
        check_pipeline_folder(folder)


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"])
def test_clip_folder_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_clip(tmp_path / "clip")
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=name):
        check_clip_folder(folder)


def test_clip_folder_with_broken_json_or_truncated_weights_is_refused(tmp_path: Path) -> None:
    folder = make_clip(tmp_path / "clip")
    cut(folder / "open_clip_model.safetensors", -2)
    with pytest.raises(ModelFolderError, match="open_clip_model.safetensors is truncated"):
        check_clip_folder(folder)
    cut(folder / "open_clip_config.json", -3)
    with pytest.raises(ModelFolderError, match="open_clip_config.json is not valid JSON"):
        check_clip_folder(folder)
    with pytest.raises(ModelFolderError, match="no folder"):
        check_clip_folder(tmp_path / "absent")


def test_checks_import_nothing_heavy() -> None:
    code = "import sys, sharpening.checks; sys.exit(bool({'torch', 'numpy', 'ray', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
