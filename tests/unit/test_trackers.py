"""Trackers with their real libraries: what a run tells them is read back with their own readers."""

import json
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rayjobs.errors import OptionError
from rayjobs.options import RLHFOptions
from rayjobs.sharing import check_trackers
from rayjobs.tracking import open_trackers
from rayjobs.tracking.secrets import scrub
from rayjobs.tracking.worker import Place
from sharpening.evaluation.run_folder import RunFolder
from sharpening.evaluation.summary import PromptResult, summarise
from tests.listening import free_port

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the length that W&B's keys have
ALL = ("tensorboard", "wandb", "mlflow")
LOSSES = [0.7, 0.6, 0.5, 0.45, 0.4]
METRICS = {"before": [50.0, 52.0, 54.0], "after": [51.0, 54.0, 57.0]}


def row(update: int) -> dict[str, Any]:
    return {"update": update, "loss": LOSSES[update], "reward": 50.0 + update, "note": "no number", "accuracy": None}


def look(update: int) -> dict[str, Any]:
    return {"update": update, "reward": 60.0 + update, "facts": 0.5, "training_reward": 1.0, "alarm": update > 2}


def run_folder(path: Path, **changes: Any) -> tuple[RLHFOptions, RunFolder]:
    """A run's folder, with grids and a summary."""
    options = RLHFOptions(**{"output_dir": str(path), "report_to": ALL, "max_train_steps": len(LOSSES)} | changes)
    folder = RunFolder.create(path, options.config())
    for place, name in enumerate(("samples_before", "samples_000002", "samples_000004", "samples_after")):
        folder.write_image(f"{name}.png", Image.new("RGB", (12, 8), (40 * place, 7, 200)))
    rows = [
        PromptResult(i, f"prompt {i}", "colour", phase, 1.0, reward)  # type: ignore[arg-type]
        for phase, rewards in METRICS.items()
        for i, reward in enumerate(rewards)
    ]
    folder.write_summary(summarise(rows, 1.0, updates=len(LOSSES), seconds=9.0, nfe=100))
    return options, folder


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that was interrupted after three updates, goes on from a checkpoint at the first, and ends."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("HF_TOKEN", f"hf_{KEY}")
        options, folder = run_folder(tmp_path_factory.mktemp("tracked") / "rlhf-run")
        first = open_trackers(options, folder, said.append)
        assert first.updates == 0
        first.sample(folder.path / "samples_before.png", 0)
        first.rows([row(0)])
        first.rows([row(1), row(2)])
        first.looks([look(2)], folder.path)
        first.close(completed=False)
        again = open_trackers(options, folder, said.append)
        assert again.updates == 3
        again.sample(folder.path / "samples_before.png", 0)
        again.rows([row(1), row(2), row(3)])  # two of them are made again
        again.looks([look(2)], folder.path)
        again.rows([row(4)])
        again.looks([look(2), look(4)], folder.path)  # the newer one comes after a later update
        again.own(folder.path / "samples_000002.png", {"reward": 3.0, "reward_clip": 61.0}, 0)
        again.own(folder.path / "samples_000002.png", {"reward": 3.0}, 0)  # once more, of a start that was resumed
        again.own(folder.path / "samples_000004.png", {}, 5)  # nothing could be scored
        again.sample(folder.path / "samples_after.png", 5)
        again.sample(folder.path / "samples_compared.png", 5)  # which the run has not written
        again.results(folder.path)
        again.close(completed=True)
    return folder.path, said


def test_tensorboard_reads_the_run_back(tracked: tuple[Path, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = tracked
    events = EventAccumulator(str(folder / "logs" / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5]
    assert [event.value for event in losses] == pytest.approx(LOSSES)
    assert [(event.step, event.value) for event in events.Scalars("held_out/reward")] == [(2, 62.0), (4, 64.0)]
    assert [event.value for event in events.Scalars("held_out/alarm")] == [0.0, 1.0]
    assert not {"train/note", "train/accuracy", "train/update"} & set(events.Tags()["scalars"])
    (difference,) = events.Scalars("final/guidance_1/reward/difference")
    assert (difference.step, difference.value) == (5, 2.0)
    assert [event.step for event in events.Images("samples/held_out")] == [2, 4]
    assert [event.step for event in events.Images("samples/own_prompts")] == [0, 5]
    assert [(event.step, event.value) for event in events.Scalars("own_prompts/reward_clip")] == [(0, 61.0)]
    (before,) = events.Images("samples/before")
    assert (before.width, before.height) == (12, 8)
    (table,) = events.Tensors("final/results/text_summary")
    assert "| 1 | 3 | reward | 52 | 54 | 2 |" in table.tensor_proto.string_val[0].decode()
    (config,) = events.Tensors("config/text_summary")
    assert '"branches": 4' in config.tensor_proto.string_val[0].decode()


def wandb_records(path: Path) -> list[Any]:
    """Records of a `.wandb` file: LevelDB's log format, whose blocks of 32 KiB hold checked pieces of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(record))
            record = b""
    return found


def test_wandb_keeps_the_run_for_later(tracked: tuple[Path, list[str]]) -> None:
    folder, said = tracked
    files = sorted((folder / "logs" / "wandb" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: str(path))
    starts = [wandb_records(path) for path in files]
    assert len(starts) == 2
    runs = [next(r.run for r in records if r.WhichOneof("record_type") == "run") for records in starts]
    assert len({run.run_id for run in runs}) == 1
    assert {(run.project, run.host) for run in runs} == {("trajectory-sharpening", "-")}
    assert json.loads(next(u.value_json for u in runs[0].config.update if u.key == "branches")) == 4
    history = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for records in starts
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(r["update"], r["train/loss"]) for r in history if "train/loss" in r] == list(enumerate(LOSSES, start=1))
    looks = [(r["update"], r["held_out/reward"]) for r in history if "held_out/reward" in r]
    assert looks == [(2, 62.0), (4, 64.0)]
    assert [r["final/guidance_1/reward/after"] for r in history if "final/guidance_1/reward/after" in r] == [54.0]
    media = [name for r in history for name in r if name.endswith("/path")]
    assert sorted(media) == [
        "final/results/path", "samples/after/path", "samples/before/path", "samples/held_out/path",
        "samples/held_out/path", "samples/own_prompts/path", "samples/own_prompts/path",
    ]  # fmt: skip
    ended = [r.exit.exit_code for records in starts for r in records if r.WhichOneof("record_type") == "exit"]
    assert ended == [1, 0]
    assert sum("wandb sync" in line for line in said) == 2


def test_mlflow_reads_the_run_back(tracked: tuple[Path, list[str]]) -> None:
    from mlflow import MlflowClient

    folder, _ = tracked
    store = folder / "logs" / "mlflow"
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("trajectory-sharpening")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "rlhf-run"
    assert run.data.params["branches"] == "4"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == list(enumerate(LOSSES, start=1))
    looks = client.get_metric_history(run.info.run_id, "held_out/facts")
    assert [(m.step, m.value) for m in looks] == [(2, 0.5), (4, 0.5)]
    assert run.data.metrics["final/guidance_1/reward/difference"] == 2.0
    pictures = {Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, "samples")}
    assert pictures == {"samples_before.png", "samples_000002.png", "samples_000004.png", "samples_after.png"}
    table = client.download_artifacts(run.info.run_id, "final/results.md", str(store))
    assert "| reward | 52 | 54 | 2 |" in Path(table).read_text()


def test_no_key_reaches_the_run_folder_or_the_log(tracked: tuple[Path, list[str]]) -> None:
    folder, said = tracked
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in "\n".join(said)


def test_a_tracker_without_network_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{nobody}")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hidden-word@{nobody}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    options, folder = run_folder(tmp_path / "run")
    trackers = open_trackers(options, folder, said.append)
    for update in range(len(LOSSES)):
        trackers.rows([row(update)])
    trackers.close(completed=True)
    for name in ("wandb", "mlflow"):
        (line,) = [line for line in said if line.startswith(name)]
        assert line.startswith(f"{name} does not follow the run any more (")
        assert "\n" not in line
        assert KEY not in line
        assert "hidden-word" not in line
    # Those that failed are told everything when the run goes on.
    told = {name: Place.read(folder.path / "logs" / f"{name}.json").rows for name in ALL}
    assert told == {"tensorboard": len(LOSSES), "wandb": 0, "mlflow": 0}


def test_a_tracker_is_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayjobs.tracking import following

    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(following, "PATIENCE_S", 0.2)
        said: list[str] = []
        options, folder = run_folder(tmp_path / "run", report_to=("mlflow",))
        trackers = open_trackers(options, folder, said.append)
        trackers.rows([row(0)])
        trackers.close(completed=True)
        waiting = [thread.name for thread in threading.enumerate() if thread.name.startswith("tracker-")]
        assert waiting == ["tracker-mlflow"]  # it still waits for its server; the run does not
    assert "took longer than 0.2 s" in said[-1]


def test_what_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(RLHFOptions(report_to=ALL))
    for package, tracker in {"wandb": "wandb", "tensorboard": "tensorboard", "sqlalchemy": "mlflow"}.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(OptionError, match=rf"^--report_to: {tracker}.*not installed.*; pip install"):
                check_trackers(RLHFOptions(report_to=(tracker,)))
            check_trackers(RLHFOptions(report_to=tuple(name for name in ALL if name != tracker)))


def test_secrets_are_taken_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse")
    monkeypatch.setenv("SHORT_KEY", "ab")
    said = scrub("about correct-horse at https://me:pass@host/x, https://host/y@z")
    assert said == "about *** at https://***@host/x, https://host/y@z"


def test_a_place_that_was_cut_short_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "place.json").write_text('{"identity": {"id"')
    assert Place.read(tmp_path / "place.json") == Place()
    assert Place.read(tmp_path / "absent.json") == Place()
