"""A run's model card, and its way to the hub: real client code against a small server."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image

from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.options import JobOptions
from rayjobs.runtime.publishing import command, publish
from rayjobs.sharing import check_hub
from sharpening.evaluation.run_folder import RunFolder
from sharpening.evaluation.summary import PromptResult, judged, summarise

TOKEN = "hf_correcthorsebatterystaple"
GAINS = {1.0: [2.0, 3.0, 4.0, 5.0], 3.0: [1.0, -1.0, 1.0, -1.0]}
WEIGHTS = bytes(range(256)) * 40


def finished_run(path: Path, options: JobOptions, lora: bool = False) -> RunFolder:
    """A run's folder as the driver leaves it before the card is written."""
    folder = RunFolder.create(path, options.config())
    rows = [
        PromptResult(i, f"prompt {i}", "colour", phase, scale, **judged(60 + gain * (phase == "after"), (True, i > 1)))  # type: ignore[arg-type]
        for scale, gains in GAINS.items()
        for phase in ("before", "after")
        for i, gain in enumerate(gains)
    ]
    folder.write_summary(summarise(rows, 1.0, updates=7, seconds=61.4, nfe=4500))
    folder.write_image("samples_after.png", Image.new("RGB", (9, 9)))
    folder.write_image("samples_compared.png", Image.new("RGB", (18, 9)))
    folder.pipeline.mkdir()
    if lora:  # beside the pipeline, into which they are merged
        (folder.path / "pytorch_lora_weights.safetensors").write_bytes(WEIGHTS)
    kind = "StableDiffusion3Pipeline" if lora else "StableDiffusionXLPipeline"
    (folder.pipeline / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (folder.pipeline / "unet").mkdir()
    (folder.pipeline / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model's folder, with a licence."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: my-terms\ntags: [a]\n---\n# Base\n")
    return folder


def test_the_card_has_the_runs_results_and_command(tmp_path: Path) -> None:
    asked = parse(["--max_train_steps", "7", "--beta_dpo", "50", "--eval_guidance_scales", "1", "3", "--use_gpu", "no"])
    said: list[str] = []
    folder = finished_run(tmp_path / "rlhf-x", asked)
    options = asked.model_copy(update={"output_dir": str(folder.path), "resolution": 64})
    publish(folder, options, asked, said.append)
    assert said == []
    card = ModelCard.load(folder.pipeline / "README.md")
    assert card.data.tags == [
        "diffusers", "text-to-image", "diffusion-sharpening", "stable-diffusion-xl", "stable-diffusion-xl-diffusers",
    ]  # fmt: skip
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    assert card.data.base_model is None  # the embedded model is on no hub
    assert card.data.license is None
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["reward (clip), guidance 1"] == 63.5
    assert found["share of facts, guidance 1"] == 0.75
    assert found["reward (clip), guidance 3"] == 60.0
    # By hand: differences 2, 3, 4, 5 have mean 3.5, s = 1.291; t(3) = 3.1824 makes ± 2.054.
    assert "| reward | 60.00 | 63.50 | +3.50 | [+1.45, +5.55] |" in card.text
    assert "| reward | 60.00 | 60.00 | +0.00 | [-1.84, +1.84] |" in card.text
    assert card.text.count("| facts | 0.750 | 0.750 |") == 2
    assert "Guidance 3: 4 held-out prompts" in card.text
    assert "python rayjobs/rlhf.py --max_train_steps 7 --use_gpu no --beta 50.0\n" in card.text
    assert "7 updates, 61 seconds, 4,500 network evaluations" in card.text
    assert "![samples compared](./samples_compared.png)" in card.text
    assert (folder.pipeline / "samples_compared.png").read_bytes() == (
        folder.path / "samples_compared.png"
    ).read_bytes()
    assert str(tmp_path) not in card.content
    assert parse(["--config", str(folder.pipeline / "training_config.json")]) == asked


def test_an_adapters_card_names_its_base_and_the_bases_licence(tmp_path: Path, base: Path) -> None:
    asked = parse(["--pretrained_model_name_or_path", str(base)])
    folder = finished_run(tmp_path / "rlhf-lora", asked, lora=True)
    publish(folder, asked.model_copy(update={"output_dir": str(folder.path)}), asked, pytest.fail)
    card = ModelCard.load(folder.pipeline / "README.md")
    assert card.data.tags[-3:] == ["sd3", "sd3-diffusers", "lora"]
    assert (card.data.license, card.data.license_name) == ("other", "my-terms")
    assert 'load_lora_weights("rlhf-lora", weight_name="pytorch_lora_weights.safetensors")' in card.text
    assert (folder.pipeline / "pytorch_lora_weights.safetensors").read_bytes() == WEIGHTS
    hub = parse(["--pretrained_model_name_or_path", "somebody/sdxl"])
    folder = finished_run(tmp_path / "rlhf-hub", hub)
    publish(folder, hub.model_copy(update={"output_dir": str(folder.path)}), hub, pytest.fail)
    card = ModelCard.load(folder.pipeline / "README.md")
    assert card.data.base_model == "somebody/sdxl"
    assert "Fine-tuned from `somebody/sdxl`" in card.text


@pytest.mark.parametrize(
    ("method", "argv"),
    [
        ("rlhf", "--branches 6 --skip_evaluation --prompts 'my prompts.txt'"),
        ("sft", "--no-allow_tf32 --seed 3"),
        ("ddpo", "--report_to tensorboard wandb --eval_guidance_scales 1 2.5"),
    ],
)
def test_the_command_asks_for_the_same_options(method: str, argv: str) -> None:
    import shlex

    asked = parse(shlex.split(argv), "finetune.py", (method,))
    python, job, *words = shlex.split(command(asked))
    assert (python, job) == ("python", f"rayjobs/{method if method in ('rlhf', 'sft') else 'finetune'}.py")
    methods = ("rlhf", "ddpo") if "--method" in words else (method,)
    assert parse(words, Path(job).name, methods) == asked


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; keeps what it was sent."""

    server: "HubServer"

    def do_GET(self) -> None:
        self._answer(404, {"error": "there is no Xet storage here"})

    def do_PUT(self) -> None:
        assert self.headers.get("Authorization") is None  # the address of an upload is signed, and may be another host
        self.server.stored[self.path.removeprefix("/lfs/")] = self._body()
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        if self.server.refuse and self.path.endswith("/commit/main"):
            return self._answer(403, {"error": "You have read access but not the required permissions"})
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            return self._answer(200, {"url": f"{self.server.url}/me/{name}", "name": f"me/{name}"})
        if self.path.endswith("/preupload/main"):
            files = [entry["path"] for entry in json.loads(body)["files"]]
            modes = {
                path: "lfs" if self.server.large and path.endswith(".safetensors") else "regular" for path in files
            }
            told = [{"path": p, "uploadMode": mode, "shouldIgnore": False, "oid": None} for p, mode in modes.items()]
            return self._answer(200, {"files": told})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            actions = {"verify": {"href": f"{self.server.url}/lfs-verify"}}
            objects = [
                {**entry, "actions": actions | {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if self.path == "/lfs-verify":
            entry = json.loads(body)
            stored = self.server.stored[entry["oid"]]
            whole = (len(stored), hashlib.sha256(stored).hexdigest()) == (entry["size"], entry["oid"])
            self.server.verified += [entry["oid"]] if whole else []
            return self._answer(200 if whole else 422, {})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "lfsFile":
                    self.server.files[line["value"]["path"]] = self.server.stored[line["value"]["oid"]]
            return self._answer(200, {"commitUrl": f"{self.server.url}/me/x/commit/1", "commitOid": "1" * 40})
        return self._answer(200, {"errors": [], "warnings": []})

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):  # Transfer-Encoding: chunked
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, str]] = []
        self.files: dict[str, bytes] = {}
        self.refuse = False
        self.large = False  # whether weights go to a storage of their own
        self.stored: dict[str, bytes] = {}
        self.verified: list[str] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


def pushed(path: Path, *argv: str) -> tuple[RunFolder, list[str]]:
    """Publish a run's pipeline; what was said."""
    asked = parse(["--push_to_hub", *argv])
    folder = finished_run(path, asked)
    said: list[str] = []
    publish(folder, asked.model_copy(update={"output_dir": str(folder.path)}), asked, said.append)
    return folder, said


@pytest.mark.parametrize("large", [False, True])
def test_a_pipeline_is_pushed_as_it_is(tmp_path: Path, hub: HubServer, large: bool) -> None:
    assert find_spec("hf_xet")  # which would be used, were it not for this hub
    assert not constants.HF_HUB_DISABLE_XET
    hub.large = large
    folder, said = pushed(tmp_path / "rlhf-x", "--hub_model_id", "sharp")
    assert said == [f"the pipeline is at {hub.url}/me/sharp"]
    local = {
        p.relative_to(folder.pipeline).as_posix(): p.read_bytes() for p in folder.pipeline.rglob("*") if p.is_file()
    }
    assert "README.md" in local
    assert local == hub.files
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    assert hub.stored == ({oid: WEIGHTS} if large else {})
    assert hub.verified == ([oid] if large else [])
    assert not constants.HF_HUB_DISABLE_XET
    assert {token for _, token in hub.asked} == {f"Bearer {TOKEN}"}
    assert hub.asked[0][0] == "/api/repos/create"
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_push_that_fails_leaves_the_run_whole(tmp_path: Path, hub: HubServer) -> None:
    hub.refuse = True
    folder, said = pushed(tmp_path / "rlhf-y")
    (line,) = said
    assert line.startswith("the pipeline was not pushed to rlhf-y (")
    assert line.endswith(f"; the run is whole, and pushed later with: hf upload rlhf-y {folder.pipeline}")
    assert "\n" not in line
    assert TOKEN not in line
    assert (folder.pipeline / "README.md").is_file()


def test_what_could_not_be_pushed_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(OptionError, match=r"^--push_to_hub: needs a token .* no HF_TOKEN; export HF_TOKEN"):
        check_hub(parse(["--push_to_hub"]))
    with pytest.raises(OptionError, match=r"^--hub_model_id: nothing is uploaded; pass --push_to_hub"):
        check_hub(parse(["--hub_model_id", "me/model"]))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_hub(parse(["--push_to_hub", "--hub_model_id", "me/model"]))
    with pytest.raises(OptionError, match=r"^--hub_model_id: 'a/b/c' is no repository.*; pass owner/name"):
        check_hub(parse(["--push_to_hub", "--hub_model_id", "a/b/c"]))
