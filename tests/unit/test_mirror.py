"""Runs that are copied to an address: against an S3 server over HTTP, and against a folder by its file:// address."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.mirror.address import normal, split_checkpoint
from rayjobs.mirror.checks import check_address, settle_mirror
from rayjobs.mirror.store import Store, StoreError
from rayjobs.mirror.upload import OWN, Upload, remote_checkpoints
from rayjobs.mirror.worker import Mirror, prepare
from rayjobs.options import JobOptions
from rayjobs.resume import check_resume
from rayjobs.runtime import checkpoints
from rayjobs.upload import main as upload_by_hand
from sharpening.evaluation.run_folder import RunFolder
from tests.s3_server import S3, s3

__all__ = ["s3"]  # a fixture

STATE = checkpoints.STATE


@dataclass(frozen=True)
class There:
    """A run's address, and what lies at it."""

    address: str
    files: Callable[[], dict[str, bytes]]

    def whole(self) -> list[str]:
        return remote_checkpoints(self.files())[0]


@pytest.fixture(params=["s3", "file"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[There]:
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        yield There("s3://bucket/deep/run", lambda: server.files("deep/run"))
    else:
        yield There(f"file://{tmp_path}/there/run", lambda: contents(tmp_path / "there" / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder, also while it changes."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place) / name for name in names):
            with suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def run_files(folder: RunFolder) -> dict[str, bytes]:
    """What an address should have of a folder."""
    apart = (OWN, "checkpoints/partial-", "checkpoints/checkpoint_manager", ".half", "pipeline.partial/")
    return {name: text for name, text in contents(folder.path).items() if not name.startswith(apart)}


def checkpoint(folder: RunFolder, update: int, salt: str = "") -> Path:
    """A checkpoint of two shards, as a learner group leaves it."""
    partial = checkpoints.partial_for(folder.checkpoints, update)
    (partial / "engine").mkdir(parents=True)
    for rank in (0, 1):
        (partial / "engine" / f"rank-{rank}.pt").write_bytes(f"weights {update} {rank} {salt}".encode() * 1000)
    return checkpoints.complete(folder.checkpoints, checkpoints.TrainerState(update, 2, []), [{"update": 0}])


def options(*argv: str) -> JobOptions:
    return parse(["--prompts_per_update", "8", *argv])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with two checkpoints, in the midst of the third."""
    made = RunFolder.create(tmp_path / "here" / "run", options().config())
    (made.path / "metrics.jsonl").write_text('{"update": 0}\n')
    (made.path / ".half.123.partial").write_text("h")
    (made.path / "pipeline.partial" / "unet").mkdir(parents=True)  # being saved
    (made.path / "pipeline.partial" / "unet" / "weights").write_text("half")
    (made.path / "logs" / "tensorboard").mkdir(parents=True)
    (made.path / "logs" / "tensorboard.json").write_text("{}")
    (made.path / "logs" / "tensorboard" / "events").write_text("e")
    (made.checkpoints / "checkpoint_manager_snapshot.json").write_text("{}")
    for update in (2, 4):
        checkpoint(made, update)
    checkpoints.partial_for(made.checkpoints, 6).mkdir()
    (checkpoints.partial_for(made.checkpoints, 6) / "engine.pt").write_text("half")
    return made


class Watched(Store):
    """A store that tells what it is asked, and does something before a file is put."""

    def __init__(self, address: str, before: Callable[[str], None] = lambda name: None) -> None:
        super().__init__(address)
        self.asked: list[str] = []
        self.before = before

    def put(self, source: Path, name: str) -> None:
        self.before(name)
        super().put(source, name)
        self.asked.append(f"put {name}")

    def remove(self, name: str) -> None:
        super().remove(name)
        self.asked.append(f"remove {name}")


def copied(folder: RunFolder, store: Store, keep: int | None = None, pipeline: bool = False) -> Upload:
    upload = Upload(folder, store, keep)
    upload.claim()
    upload.copy(pipeline)
    return upload


def test_a_folder_is_copied_and_then_only_what_is_new(there: There, folder: RunFolder) -> None:
    store = Watched(there.address)
    upload = copied(folder, store)
    assert there.files() == run_files(folder)
    assert store.asked[-1] == f"put checkpoints/checkpoint-000002/{STATE}"
    place, events = (store.asked.index(f"put logs/tensorboard{end}") for end in (".json", "/events"))
    assert place < events
    assert upload.missing(pipeline=True) == {}

    store.asked.clear()
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 1}\n')
    folder.pipeline.mkdir()
    (folder.pipeline / "weights").write_text("half")
    assert set(upload.missing(pipeline=True)) == {"metrics.jsonl"}  # without an index the pipeline is not whole
    upload = copied(folder, store, pipeline=True)  # as another process would
    assert store.asked == ["put metrics.jsonl"]
    (folder.pipeline / "model_index.json").write_text("{}")
    (folder.pipeline / "a").write_text("a")
    upload.copy()
    assert store.asked == ["put metrics.jsonl"]  # not before the run has ended
    upload.copy(pipeline=True)
    assert store.asked[1:] == ["put pipeline/a", "put pipeline/weights", "put pipeline/model_index.json"]
    assert there.files() == run_files(folder)


def test_half_a_checkpoint_never_counts(there: There, folder: RunFolder) -> None:
    def fail(name: str) -> None:
        if name.endswith("rank-1.pt"):
            raise StoreError("the line is dead")

    upload = Upload(folder, Watched(there.address, fail), None)
    upload.claim()
    with pytest.raises(StoreError, match="the line is dead"):
        upload.copy()
    assert any(name.startswith("checkpoints/checkpoint-000004/") for name in there.files())
    assert there.whole() == []
    assert f"checkpoints/checkpoint-000004/{STATE}" in upload.missing()
    assert copied(folder, Store(there.address)).missing() == {}
    assert there.whole() == ["checkpoint-000002", "checkpoint-000004"]
    assert there.files() == run_files(folder)


def test_what_arrives_short_does_not_count(there: There, folder: RunFolder) -> None:
    class Cutting(Store):
        def put(self, source: Path, name: str) -> None:
            if name.endswith("rank-0.pt"):
                cut = folder.path.parent / "cut"
                cut.write_bytes(source.read_bytes()[:-1])
                source = cut
            super().put(source, name)

    with pytest.raises(StoreError, match="checkpoint-000004 did not arrive whole"):
        copied(folder, Cutting(there.address))
    assert there.whole() == []


def test_a_checkpoint_that_is_made_again_counts_again_only_when_it_is_whole(there: There, folder: RunFolder) -> None:
    store = Watched(there.address)
    copied(folder, store)
    shutil.rmtree(folder.checkpoints / "checkpoint-000004")
    checkpoint(folder, 4, "again")
    (folder.checkpoints / "checkpoint-000004" / "engine" / "rank-1.pt").unlink()  # by fewer learners
    store.asked.clear()
    seen: list[list[str]] = []
    store.before = lambda name: seen.append(there.whole())
    copied(folder, store)
    assert seen == [["checkpoint-000002"]] * len(seen)
    assert store.asked[0] == f"remove checkpoints/checkpoint-000004/{STATE}"
    assert there.files() == run_files(folder)


def test_the_address_keeps_as_many_checkpoints_as_the_run(there: There, folder: RunFolder) -> None:
    store = Watched(there.address)
    copied(folder, store, keep=2)
    store.put(folder.path / "config.json", "checkpoints/checkpoint-000003/engine.pt")  # of a copy that never ended
    checkpoint(folder, 6)
    checkpoints.prune(folder.checkpoints, 2)
    copied(folder, store, keep=2)
    assert there.whole() == ["checkpoint-000004", "checkpoint-000006"]
    assert there.files() == run_files(folder)
    checkpoint(folder, 8)
    checkpoints.prune(folder.checkpoints, 1)
    copied(folder, store)  # without a limit: a machine that fetched only the newest one keeps the others there
    assert there.whole() == ["checkpoint-000004", "checkpoint-000006", "checkpoint-000008"]


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_that_is_rotated_out_meanwhile(
    there: There, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """With hard links it arrives all the same; without, it is left out, and the run's other files are there."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))

    def rotate(name: str) -> None:
        if name.endswith("checkpoint-000004/engine/rank-0.pt"):
            checkpoint(folder, 8)
            checkpoints.prune(folder.checkpoints, 1)

    upload = copied(folder, Watched(there.address, rotate))
    assert there.whole() == (["checkpoint-000004"] if links else [])
    upload.copy()
    assert there.whole() == [*(["checkpoint-000004"] if links else []), "checkpoint-000008"]
    assert not (folder.path / OWN / "checkpoint").exists()
    assert upload.missing() == {}


def test_a_run_goes_on_where_nothing_of_it_is(there: There, folder: RunFolder, tmp_path: Path) -> None:
    copied(folder, Store(there.address))
    before = run_files(folder)
    shutil.rmtree(folder.path)
    argv = ["--output_dir", there.address, "--local_dir", str(folder.path), "--resume_from_checkpoint"]
    found = settle_mirror(options(*argv, "latest"))
    with pytest.raises(OptionError, match=r"^--branches: is 7, but the run in .* has \d+; pass --branches"):
        check_resume(found.model_copy(update={"branches": 7}), check_address(found))
    place, newest = check_resume(found, check_address(found))
    assert (place, newest) == (str(folder.path), str(folder.checkpoints / "checkpoint-000004"))
    assert not folder.path.exists()  # nothing is fetched before everything is checked
    said: list[str] = []
    store = prepare(found.model_copy(update={"resume_from_checkpoint": newest}), said.append)
    (line,) = said
    assert line.startswith(f"fetching checkpoint-000004 and what else the run needs from {there.address}, ")
    assert store is not None
    fetched = run_files(folder)
    assert fetched == {name: text for name, text in before.items() if "checkpoint-000002" not in name}
    again = Watched(there.address)
    assert copied(folder, again).missing() == {}
    assert again.asked == []  # what was fetched is not copied back
    assert prepare(found.model_copy(update={"resume_from_checkpoint": newest}), pytest.fail) is not None

    # The folder is behind its address.
    checkpoint(folder, 2)
    checkpoints.discard(folder.checkpoints / "checkpoint-000004")
    (folder.path / "metrics.jsonl").write_text("")
    assert check_resume(found, store) == (place, newest)
    prepare(found.model_copy(update={"resume_from_checkpoint": newest}), said.append)
    assert len(said) == 2
    assert run_files(folder) == before
    checkpoints.discard(folder.checkpoints / "checkpoint-000002")

    # An older one, by its address.
    named = settle_mirror(
        options(f"--resume_from_checkpoint={there.address}/checkpoints/checkpoint-000002", f"--local_dir={folder.path}")
    )
    assert named.output_dir == there.address
    _, older = check_resume(named, check_address(named))
    assert older == str(folder.checkpoints / "checkpoint-000002")
    with pytest.raises(OptionError, match=r"checkpoint-000003 is no checkpoint of .*; pass .*checkpoint-000004"):
        check_resume(named.model_copy(update={"resume_from_checkpoint": older.replace("2", "3")}), store)


def test_a_fetch_that_breaks_off_leaves_no_checkpoint(
    there: There, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(folder, Store(there.address))
    shutil.rmtree(folder.path)
    argv = ["--output_dir", there.address, "--local_dir", str(folder.path), "--resume_from_checkpoint"]
    found = settle_mirror(options(*argv, str(folder.checkpoints / "checkpoint-000004")))
    get = Store.get

    def fail(self: Store, name: str, target: Path) -> None:
        if name.endswith(breaks_off[0]):
            raise StoreError("the line is dead")
        get(self, name, target)

    breaks_off = ["rank-1.pt"]
    for breaks_off[0] in ("rank-1.pt", "versions.json"):  # the checkpoint's, and what the run keeps besides
        with monkeypatch.context() as patch:
            patch.setattr(Store, "get", fail)
            with pytest.raises(OptionError, match=r"could not be fetched from .* \(the line is dead\); the same comm"):
                prepare(found, lambda text: None)
        assert checkpoints.listed(folder.checkpoints) == []
        assert list(folder.checkpoints.glob("partial-*")) == []
    prepare(found, lambda text: None)
    assert [path.name for path in checkpoints.listed(folder.checkpoints)] == ["checkpoint-000004"]


def test_another_runs_address_and_folder_are_refused(there: There, folder: RunFolder, tmp_path: Path) -> None:
    copied(folder, Store(there.address))
    argv = ["--output_dir", there.address, "--local_dir"]
    with pytest.raises(OptionError, match=r"^--output_dir: .* belongs to another run; pass another address, or cont"):
        check_address(settle_mirror(options(*argv, str(tmp_path / "new"))))
    other = RunFolder.create(tmp_path / "other", options().config())
    checkpoint(other, 2)
    copied(other, Store(f"{there.address}-2"))
    with pytest.raises(OptionError, match=r"^--local_dir: .*other has another run than .*; pass an empty folder"):
        check_address(settle_mirror(options(*argv, str(other.path), "--resume_from_checkpoint", "latest")))
    assert upload_by_hand([str(other.path), there.address]) == 2
    own = settle_mirror(options(*argv, str(folder.path), "--resume_from_checkpoint", "latest"))
    assert check_address(own) is not None
    # A run that stayed in its folder so far may go on with an address that has nothing yet.
    late = [f"--output_dir={there.address}-3", f"--local_dir={folder.path}", "--resume_from_checkpoint=latest"]
    found = settle_mirror(options(*late))
    assert check_resume(found, check_address(found))[1] == str(folder.checkpoints / "checkpoint-000004")
    nowhere = settle_mirror(options(*late, f"--local_dir={tmp_path / 'nothing'}"))
    with pytest.raises(OptionError, match="neither .*nothing nor .* has a run"):
        check_resume(nowhere, check_address(nowhere))


def test_the_thread_copies_each_checkpoint_and_the_end(
    there: There, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayjobs.mirror.worker.POLL_S", 0.02)
    said: list[str] = []
    mirror = Mirror(folder, Store(there.address), 2, said.append)
    mirror.upload.claim()
    assert set(there.files()) == {"config.json", "versions.json", "mirror.json"}
    mirror.start()
    wait_for(lambda: len(there.whole()) == 2)
    checkpoint(folder, 6)
    checkpoints.prune(folder.checkpoints, 2)
    wait_for(lambda: there.whole() == ["checkpoint-000004", "checkpoint-000006"])
    (folder.path / "report.html").write_text("<html>")
    mirror.close()
    assert said == [f"everything is at {there.address}"]
    assert there.files() == run_files(folder)


def test_uploads_that_fail_are_told_once_and_done_by_hand(
    s3: S3, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rayjobs.mirror.worker.POLL_S", 0.02)
    said: list[str] = []
    mirror = Mirror(folder, Store("s3://bucket/run"), 2, said.append)
    mirror.upload.claim()
    s3.remove_bucket()
    mirror.start()
    wait_for(lambda: said)
    for update in (6, 8):
        checkpoint(folder, update)
        threading.Event().wait(0.3)
    how = f"python rayjobs/upload.py {folder.path} s3://bucket/run"
    mirror.close()
    first, last = said
    assert first.startswith("the run is not copied to s3://bucket/run (NO_SUCH_BUCKET: The specified bucket does not ")
    assert first.endswith(f"the next checkpoint tries again, and by hand it is: {how}")
    assert "checkpoint-000006, checkpoint-000008 among them) are not at s3://bucket/run (NO_SUCH_BUCKET" in last
    assert last.endswith(f"the run's folder has them all, and they are copied later with: {how}")
    assert not any("\n" in line or secret in line for line in said for secret in s3.environment.values())
    assert upload_by_hand(how.split()[2:]) == 2  # there is still no bucket
    assert "upload: error: ADDRESS: cannot write to s3://bucket/run (NO_SUCH_BUCKET" in capsys.readouterr().err
    s3.make_bucket()
    assert upload_by_hand(how.split()[2:]) == 0
    assert s3.files("run") == run_files(folder)  # also what was there before the bucket went away
    s3.client.delete_object(Bucket="bucket", Key="run/checkpoints/checkpoint-000006/engine/rank-0.pt")
    assert upload_by_hand(how.split()[2:]) == 0
    assert s3.files("run") == run_files(folder)


def test_copies_begin_again_when_they_can(s3: S3, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayjobs.mirror.worker.POLL_S", 0.02)
    said: list[str] = []
    store = Watched("s3://bucket/run")
    mirror = Mirror(folder, store, 2, said.append)
    s3.remove_bucket()
    mirror.start()
    wait_for(lambda: said)
    s3.make_bucket()
    checkpoint(folder, 6)  # there are three until the run tidies up, of which the oldest is not worth a copy
    wait_for(lambda: "checkpoint-000006" in remote_checkpoints(s3.files("run"))[0])
    mirror.close()
    assert said[1:] == ["the run is copied to s3://bucket/run again", "everything is at s3://bucket/run"]
    assert not [asked for asked in store.asked if "checkpoint-000002" in asked]


def test_an_interrupted_end_says_what_is_left(there: There, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    going, release = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name.endswith("rank-0.pt"):
            going.set()
            release.wait(300)

    said: list[str] = []
    mirror = Mirror(folder, Watched(there.address, hold), 2, said.append)
    mirror.start()
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=lambda: (going.wait(300), os.kill(os.getpid(), signal.SIGTERM))).start()
    with pytest.raises(KeyboardInterrupt):
        mirror.close()
    assert signal.getsignal(signal.SIGTERM) is before
    release.set()
    wait_for(mirror._done.is_set)  # it halts between two files
    assert there.whole() == []
    waiting, line = said
    assert waiting == "the process ends once the storage has answered, or given up on, what is under way"
    assert "checkpoint-000002, checkpoint-000004 among them" in line
    assert f"python rayjobs/upload.py {folder.path} {there.address}" in line


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(15000):
        if condition():
            return
        threading.Event().wait(0.02)
    pytest.fail("waited in vain")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        ("s3://bucket//a/run", "s3://bucket/a/run"),
        ("s3://bucket/läuft, λ = 1", "s3://bucket/l%C3%A4uft,%20%CE%BB%20=%201"),
        ("s3://bucket/run?region=eu-west-1", "s3://bucket/run?region=eu-west-1"),
        ("abfss://box@account.dfs.core.windows.net/run", "abfss://box@account.dfs.core.windows.net/run"),
        ("hdfs://me@host:9000/runs/a", "hdfs://me@host:9000/runs/a"),
        ("gs://anonymous@bucket/run", "gs://anonymous@bucket/run"),
        ("file:///mnt/run", "file:///mnt/run"),
    ],
)
def test_addresses_have_one_form(given: str, expected: str) -> None:
    assert normal("output_dir", given) == expected
    assert normal("output_dir", expected) == expected


def test_an_address_of_a_checkpoint_is_split() -> None:
    assert split_checkpoint("s3://b/run/checkpoints/checkpoint-000002") == ("s3://b/run", "checkpoint-000002")
    assert split_checkpoint("s3://b/run/checkpoints?region=x") == ("s3://b/run?region=x", None)
    assert split_checkpoint("s3://b/run") == ("s3://b/run", None)


def test_where_a_copied_run_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = settle_mirror(options("--output_dir", "s3://bucket/a/my%20run/"))
    assert (found.output_dir, found.local_dir) == ("s3://bucket/a/my%20run", "runs/my run")
    assert found.run_folder == "runs/my run"
    assert json.loads(json.dumps(found.config())).keys().isdisjoint({"output_dir", "local_dir"})
    submitted = json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", submitted)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settle_mirror(options("--output_dir", "s3://bucket/run")).local_dir == str(tmp_path / "runs" / "run")
