"""Models on the hub: only what loading needs is downloaded, and it is checked as a folder would have been."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import DownloadServer, download_server

ROOT = Path(__file__).parents[2]
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
# Names beside the pipeline's own in stabilityai/stable-diffusion-xl-base-1.0, and a pickle as older repositories have.
OTHERS = [
    ".gitattributes", "01.png", "LICENSE.md", "README.md", "comparison.png", "pipeline.png",
    "sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors", "sd_xl_offset_example-lora_1.0.safetensors",
    *(f"{part}/model.fp16.safetensors" for part in PARTS[:2]), *(f"{part}/flax_model.msgpack" for part in PARTS[:2]),
    *(f"{part}/{name}" for part in PARTS for name in ("model.onnx", "openvino_model.bin", "openvino_model.xml")),
    *(f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae", "vae_1_0")),
    *(f"{part}/diffusion_flax_model.msgpack" for part in ("unet", "vae", "vae_1_0")),
    "text_encoder_2/model.onnx_data", "unet/model.onnx_data", "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors", "vae_decoder/config.json", "vae_decoder/model.onnx",
    "vae_encoder/config.json", "vae_encoder/model.onnx", "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "text_encoder_2/pytorch_model.bin",
]  # fmt: skip
FETCH = """
import json, sys
from rayjobs.errors import OptionError
from rayjobs.options import options_class
from rayjobs.runtime import models
from rayjobs.runtime.report import verified

found = []
for changes in json.loads(sys.argv[1]):
    options = options_class("rlhf")(**changes)
    try:
        settled = models.settle_model(options)
    except OptionError as error:
        found.append(str(error))
        continue
    here = [models.pipeline(options), models.vae(options)]
    found.append([settled.resolution, verified(options), verified(settled), *here])
print(json.dumps(found))
"""


@pytest.fixture
def hub(pipeline_folder: Path) -> Iterator[DownloadServer]:
    """A hub with the small SDXL in a repository that has all that the real one has, and two VAEs."""
    own = {path.relative_to(pipeline_folder).as_posix(): path for path in pipeline_folder.rglob("*") if path.is_file()}
    files = {name: path.read_bytes() for name, path in own.items()}
    vae = {name.removeprefix("vae/"): content for name, content in files.items() if name.startswith("vae/")}
    with download_server() as server:
        server.repositories["some/sdxl"] = files | dict.fromkeys(OTHERS, b"not wanted")
        server.repositories["some/vae"] = vae | {"sdxl_vae.safetensors": b"no", "diffusion_pytorch_model.bin": b"no"}
        server.repositories["some/pickled-vae"] = {
            "config.json": vae["config.json"],
            "diffusion_pytorch_model.bin": b"x",
        }
        yield server


def python(hub: DownloadServer, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process that uses this hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RAY_ADDRESS"))}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip


def fetch(hub: DownloadServer, home: Path, *asked: dict[str, object]) -> list[object]:
    """What such a process makes of some options."""
    done = python(hub, home, "-c", FETCH, json.dumps(asked))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_of_a_repository_only_what_loading_needs_is_downloaded(
    hub: DownloadServer, pipeline_folder: Path, tmp_path: Path
) -> None:
    model, vae = "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path"
    whole, bucket, pickled, absent = fetch(
        hub, tmp_path, {model: "some/sdxl", vae: "some/vae"}, {model: "some/sdxl", "resolution": 100},
        {model: str(pipeline_folder), vae: "some/pickled-vae"}, {model: "some/absent"},
    )  # fmt: skip
    wanted = {path.relative_to(pipeline_folder).as_posix() for path in pipeline_folder.rglob("*") if path.is_file()}
    assert isinstance(whole, list)
    pipeline, vae_folder = Path(whole[3]), Path(whole[4])
    here = {path.relative_to(pipeline).as_posix() for path in pipeline.rglob("*") if path.is_file()}
    # The card's licence goes into that of what is made; the other VAE is one that diffusers' own download takes along.
    assert here == wanted | {"README.md", "vae_1_0/diffusion_pytorch_model.safetensors"}
    parts = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert {path.name for path in vae_folder.iterdir()} == parts
    assert set(hub.fetched) <= here | parts | {"diffusion_pytorch_model.bin"}
    # What only the hub could tell is known then, and the verifiers are asked about images of their size alone.
    assert whole[:3] == [64, False, True]
    from sharpening.policies import load_policy

    assert load_policy(pipeline, vae=vae_folder).latent_shape == (8, 8, 8)
    assert bucket == "--resolution: is 100, but the model draws multiples of 8 pixels; pass 96"
    assert isinstance(pickled, str)
    assert pickled.startswith("--pretrained_vae_model_name_or_path: ")
    assert "diffusion_pytorch_model.bin is truncated or no torch file" in pickled
    assert isinstance(absent, str)
    assert absent.startswith("--pretrained_model_name_or_path: some/absent cannot be downloaded (")
    assert absent.endswith("; check the name, the network and HF_TOKEN, or pass a folder")
    hub.fetched.clear()
    flags = ["--use_gpu", "no", "--skip_evaluation", "--output_dir", str(tmp_path / "run")]
    job = python(hub, tmp_path, "rayjobs/rlhf.py", f"--{model}", "some/sdxl", "--resolution", "100", *flags)
    assert job.returncode == 2  # before Ray is started
    assert job.stderr.splitlines()[-1] == f"rlhf: error: {bucket}"
    assert hub.fetched == []  # it is in the cache
