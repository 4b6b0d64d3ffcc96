"""What can be told of a reward's files without torch, and what torch and the hub's client make of them."""

import argparse
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sharpening.checks import ModelFolderError
from sharpening.rewards import REWARDS, RewardModelError, load_reward, reward_class
from sharpening.rewards.files import check_reward_files
from sharpening.rewards.weights import read_weights, weights_file
from tests.small_clip import make_clip_folder
from tests.small_rewards import (
    head_state,
    image_reward_shapes,
    make_compositional_folder,
    make_image_reward_folder,
    make_pickscore_folder,
    write_sparse_safetensors,
)

VIT_H = {  # of open_clip's ViT-H-14
    "visual.conv1.weight": (1280, 3, 14, 14), "visual.proj": (1280, 1024), "token_embedding.weight": (49408, 1024),
    "positional_embedding": (77, 1024), "text_projection": (1024, 1024), "logit_scale": (),
}  # fmt: skip
IMAGE_REWARD = image_reward_shapes(1024, 24, 224, 768, 12, 30524, 512)


def refusal(reward: str, model: object = None, checkpoint: object = None) -> tuple[str, str]:
    """The option that is refused, and the sentence."""
    with pytest.raises(ModelFolderError) as error:
        check_reward_files(
            reward, None if model is None else str(model), None if checkpoint is None else str(checkpoint)
        )
    assert isinstance(error.value, RewardModelError)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.count("; ") == 1, sentence  # what is wrong; what to do
    return error.value.option, sentence


def test_published_sizes_pass_without_torch(tmp_path: Path) -> None:
    hps = write_sparse_safetensors(tmp_path / "hps.safetensors", VIT_H)
    reward = write_sparse_safetensors(tmp_path / "ir" / "ImageReward.safetensors", IMAGE_REWARD)
    head = write_sparse_safetensors(tmp_path / "head.safetensors", {"weight": (1, 768), "bias": (1,)})
    script = f"""
import sys
from sharpening.rewards import REWARDS
from sharpening.rewards.files import check_reward_files as check
check("hpsv2", None, {str(hps)!r})
check("image_reward", {str(reward.parent)!r})
check("image_reward", "owner/name", {str(reward)!r})
check("aesthetic", None, {str(head)!r})
check("compositional", None, ",".join([{str(reward)!r}] * 3))
for name in REWARDS:
    check(name)
    if not name.startswith("embedded-"):
        check(name, "owner/name")
check("clip", "ViT-L-14", "openai")
check("clip", "hf-hub:owner/name")
check("embedded-verifier", "embedded")
check("package.module:Name", "anything", "at all")
assert not {{"torch", "transformers", "open_clip"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_reward_is_registered_with_a_class_and_a_check() -> None:
    for name in REWARDS:
        assert callable(reward_class(name))
    assert {"aesthetic", "pickscore", "hpsv2", "image_reward", "compositional"} <= set(REWARDS)


def test_clip_files(tmp_path: Path) -> None:
    folder = make_clip_folder(tmp_path / "clip")
    check_reward_files("clip", str(folder))
    check_reward_files("clip", f"local-dir:{folder}")
    assert refusal("clip", "no-such")[0] == "reward_model"
    assert "there is no folder" in refusal("clip", f"local-dir:{tmp_path}/absent")[1]
    option, sentence = refusal("clip", "ViT-H-14")
    assert (option, "comes without weights" in sentence) == ("reward_checkpoint", True)
    option, sentence = refusal("clip", folder, "openai")
    assert (option, "has weights of its own" in sentence) == ("reward_checkpoint", True)
    other = write_sparse_safetensors(tmp_path / "l.safetensors", VIT_H | {"visual.conv1.weight": (1024, 3, 14, 14)})
    assert (
        "visual.conv1.weight of shape [1024, 3, 14, 14] where [1280, 3, 14, 14]"
        in refusal("clip", "ViT-H-14", other)[1]
    )
    (folder / "open_clip_model.safetensors").unlink()
    assert "open_clip_model.safetensors is missing" in refusal("clip", folder)[1]


def test_hpsv2_files(tmp_path: Path) -> None:
    lacking = {name: shape for name, shape in VIT_H.items() if name != "text_projection"}
    path = write_sparse_safetensors(tmp_path / "hps.safetensors", lacking)
    option, sentence = refusal("hpsv2", None, path)
    assert (option, "lacks text_projection" in sentence) == ("reward_checkpoint", True)
    (tmp_path / "hps.pt").write_bytes(b"nothing")
    assert "hps.pt is truncated or no torch file" in refusal("hpsv2", None, tmp_path / "hps.pt")[1]
    assert "there is no file, folder or hub id" in refusal("hpsv2", None, tmp_path / "absent.pt")[1]
    assert refusal("hpsv2", "ViT-H-15")[0] == "reward_model"
    assert "hps.safetensors lacks" in refusal("hpsv2", None, tmp_path)[1]  # which goes before hps.pt


def test_aesthetic_files(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    for layout in ("linear", "mlp", "relu"):
        save_file(head_state(layout, 768), path)
        check_reward_files("aesthetic", None, str(path))
        check_reward_files("aesthetic", "ViT-L-14", str(tmp_path))  # the one weights file of a folder
    save_file(head_state("linear", 512), path)
    assert "weight of shape [1, 512] where [1, 768] is expected" in refusal("aesthetic", None, path)[1]
    check_reward_files("aesthetic", "ViT-B-32", str(path))
    save_file({"layers.0.weight": torch.zeros(1024, 768)}, path)
    assert "lacks layers.0.bias and 8 more" in refusal("aesthetic", None, path)[1]
    save_file(head_state("linear", 768), tmp_path / "second.safetensors")
    assert "holds more than one weights file" in refusal("aesthetic", None, tmp_path)[1]


def test_pickscore_files(tmp_path: Path) -> None:
    folder = make_pickscore_folder(tmp_path / "pick")
    check_reward_files("pickscore", str(folder))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    assert "model.safetensors is truncated" in refusal("pickscore", folder)[1]
    check_reward_files("pickscore", str(folder), "owner/name")  # its weights are not needed
    save_file({"logit_scale": torch.zeros(())}, weights)
    assert "model.safetensors lacks text_projection.weight and 3 more" in refusal("pickscore", folder)[1]
    weights.write_bytes(whole)
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json is missing" in refusal("pickscore", folder)[1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "is of a bert model" in refusal("pickscore", folder)[1]
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal("pickscore", folder)[1]


def test_image_reward_and_compositional_files(tmp_path: Path) -> None:
    folder = make_image_reward_folder(tmp_path / "ir")
    check_reward_files("image_reward", str(folder))
    path = folder / "ImageReward.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal("image_reward", folder) == (
        "reward_model", f"{path} is truncated or no torch file; copy or download it again"
    )  # fmt: skip
    assert refusal("image_reward", None, path)[0] == "reward_checkpoint"
    path.unlink()
    assert "holds no weights file" in refusal("image_reward", folder)[1]
    wrong = IMAGE_REWARD | {"blip.visual_encoder.pos_embed": (1, 198, 1024)}
    path = write_sparse_safetensors(folder / "ImageReward.safetensors", wrong)
    assert "pos_embed of shape [1, 198, 1024] where [1, 197, 1024]" in refusal("image_reward", folder)[1]
    narrow = image_reward_shapes(vision=96)
    write_sparse_safetensors(path, narrow)
    assert "is 96 wide, no multiple of 64" in refusal("image_reward", folder)[1]
    iteration = make_compositional_folder(tmp_path / "itercomp")
    check_reward_files("compositional", str(iteration))
    (iteration / "reward_models" / "non_spatial_relationship.pt").write_bytes(b"")
    assert "non_spatial_relationship.pt is truncated" in refusal("compositional", iteration)[1]
    assert "names 1 checkpoints; pass three" in refusal("compositional", iteration, "one.pt")[1]


def test_embedded_rewards_take_only_what_they_can_read(tmp_path: Path) -> None:
    assert refusal("embedded-attribute", None, "file.pt")[0] == "reward_checkpoint"
    assert refusal("embedded-attribute", tmp_path)[0] == "reward_model"
    assert refusal("embedded-verifier", "owner/name") == (
        "reward_model", "the verifiers read no files, so not owner/name; leave --reward_model out"
    )  # fmt: skip


# --- reading and fetching


def test_nothing_but_tensors_is_ever_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    torch.save({"state_dict": head_state("linear", 8), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(RewardModelError, match=r"holds pickled Python objects .* never loaded; .*save_file") as error:
        read_weights(path)
    assert error.value.option == "reward_checkpoint"
    torch.save({"model": {f"module.{name}": value.half() for name, value in head_state("linear", 8).items()}}, path)
    tensors = read_weights(path)
    assert {name: value.dtype for name, value in tensors.items()} == {"weight": torch.float32, "bias": torch.float32}
    torch.save(head_state("linear", 8), path, _use_new_zipfile_serialization=False)  # as torch did before 1.6
    assert torch.equal(read_weights(path)["weight"], head_state("linear", 8)["weight"])
    torch.save([1, 2], path)
    with pytest.raises(RewardModelError, match="holds no tensors by name"):
        read_weights(path)


class Hub(SimpleHTTPRequestHandler):
    """As much of the Hugging Face hub as its client asks for, over a folder of `owner/name` folders."""

    def end_headers(self) -> None:
        if "/resolve/" in self.requestline:
            self.send_header("ETag", '"0123456789"')
            self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def translate_path(self, path: str) -> str:
        return super().translate_path(re.sub(r"/resolve/[^/]+/", "/", path))

    def do_GET(self) -> None:
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main.*", self.path)
        if listing is None:
            return super().do_GET()
        folder = Path(str(self.directory), listing[1])
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        entries = [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0" * 40}
            for f in files
        ]
        body = json.dumps(entries).encode()
        self.send_response(200 if files else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a hub on this machine that the real client talks to."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield folder
    server.shutdown()
    server.server_close()


def test_weights_come_from_the_hub(hub: Path, tmp_path: Path) -> None:
    repository = hub / "owner" / "heads"
    repository.mkdir(parents=True)
    torch.save(head_state("linear", 64), repository / "head.pth")
    clip = str(make_clip_folder(tmp_path / "clip", image_size=32))
    by_id = load_reward("aesthetic", model=clip, checkpoint="owner/heads", batch_size=1)
    by_name = load_reward("aesthetic", model=clip, checkpoint="owner/heads:head.pth", batch_size=1)
    assert torch.equal(by_id._head.weight, head_state("linear", 64)["weight"])
    assert torch.equal(by_name._head.weight, by_id._head.weight)
    make_compositional_folder(hub / "owner" / "itercomp")
    found = weights_file("owner/itercomp:reward_models", "reward_model", "^(?!.*non).*spatial", "'spatial'")
    assert found.name == "spatial_relationship.pt"
    assert found.read_bytes() == (hub / "owner/itercomp/reward_models/spatial_relationship.pt").read_bytes()


def test_what_the_hub_does_not_have_is_one_sentence(hub: Path) -> None:
    (hub / "owner" / "two").mkdir(parents=True)
    for name in ("a.pt", "b.pt"):
        (hub / "owner" / "two" / name).write_bytes(b"")
    with pytest.raises(
        RewardModelError, match=r"owner/two holds more than one weights file \(a.pt and 1 more\); name one"
    ):
        weights_file("owner/two", "reward_checkpoint")
    for value in ("owner/absent", "owner/two:c.pt"):
        with pytest.raises(
            RewardModelError, match=rf"{value} cannot be fetched from the hub \(.*; pass a file or folder"
        ):
            weights_file(value, "reward_checkpoint")
