"""Small real runs for tests: options, a Ray that several runs share, runs as processes of their own, and killing."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayjobs.command_line import parse
from rayjobs.forking import beside
from rayjobs.options import JobOptions
from rayjobs.runtime import cluster
from sharpening.evaluation.metrics import read_metrics
from tests.listening import outward_address

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "cross")]
UPDATES = 6
# What a metrics row may hold that depends on the clock, the memory or on what went wrong on the way.
UNSTEADY = ("seconds", "updates_per_second", "images_per_second", "peak_memory", "restarts")
PATIENCE_S = 600.0  # for what does come, unless something hangs


@dataclass(frozen=True)
class Models:
    """What the small runs are made with: random weights, a prompt file."""

    pipeline: Path
    clip: Path
    prompts: Path


def make_models(folder: Path) -> Models:
    """Make the small models of all runs."""
    from tests.conftest import build_pipeline
    from tests.small_clip import WORDS, make_clip_folder

    pipeline = folder / "pipeline"
    build_pipeline().save_pretrained(pipeline)
    assert set(" ".join(PROMPTS).split()) <= set(WORDS)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return Models(pipeline, make_clip_folder(folder / "clip"), prompts)


def flags(models: Models, output: Path | str, **changes: Any) -> list[str]:
    """The command line of a small run.

    Args:
        models: its models.
        output: its run folder, or an address.
        **changes: options that differ.
    """
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": models.pipeline, "reward_model": models.clip, "prompts": models.prompts,
        "output_dir": output, "prompts_per_update": 4, "rollout_batch_size": 2, "timesteps_per_rollout": 2,
        "rollout_steps": 4, "branches": 3, "train_batch_size": 4, "max_train_steps": UPDATES, "checkpointing_steps": 2,
        "learning_rate": 1e-3, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2, "num_rollout_actors": 1,
        "learner_threads": 1,
        "reward_threads": 1, "skip_evaluation": True, "use_gpu": "no",
    }  # fmt: skip
    arguments = []
    for name, value in (values | changes).items():
        if value is None:
            continue
        arguments += (
            [f"--{name}"]
            if value is True
            else [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        )
    return arguments


def options(models: Models, output: Path | str, **changes: Any) -> JobOptions:
    """Validated options of a small run."""
    from rayjobs.validation import validate

    return validate(parse(flags(models, output, **changes)))


def options_of(method: str, models: Models, output: Path, **changes: Any) -> JobOptions:
    """Validated options of a small run of any method."""
    from rayjobs.options import options_class
    from rayjobs.validation import validate

    model = options_class(method)
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(models.pipeline), "reward_model": str(models.clip),
        "prompts": str(models.prompts), "output_dir": str(output), "prompts_per_update": 4, "rollout_batch_size": 2,
        "rollout_steps": 4, "train_batch_size": 4, "max_train_steps": 4, "checkpointing_steps": 2,
        "learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0, "num_rollout_actors": 2,
        "learner_threads": 1, "skip_evaluation": True, "use_gpu": "no", "timesteps_per_rollout": 2,
        "ranked_prompts": 6, "ranked_samples": 2, "round_prompts": 4, "round_samples": 2, "round_steps": 3,
    }  # fmt: skip
    return validate(model(**{name: value for name, value in (values | changes).items() if name in model.model_fields}))


def curve(folder: Path) -> list[dict[str, Any]]:
    """What must be the same, bit for bit, in every run of the same seed: metrics without clock and memory."""
    return [
        {name: value for name, value in row.items() if not name.startswith(UNSTEADY)} for row in read_metrics(folder)
    ]


def check_copied(folder: Path, there: dict[str, bytes]) -> None:
    """An address has all of a run folder: whole checkpoints, and nothing that only makes sense here."""
    ray_trains = ("checkpoints/checkpoint_manager", "checkpoints/.validate_storage")
    here = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert there == {
        name: contents for name, contents in here.items() if not name.startswith((".mirror/", *ray_trains))
    }


def check_whole(folder: Path, updates: int = UPDATES) -> None:
    """Every update is in the metrics once, in order, and the final pipeline is there."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == updates
    assert [row["update"] for row in read_metrics(folder)] == list(range(updates))
    assert (folder / "pipeline" / "model_index.json").is_file()


@contextmanager
def shared_ray() -> Iterator[None]:
    """A local Ray in this process, which runs join and leave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_metrics_report_interval_ms", "5000")  # each time every process tells all it counts
        for name, value in (cluster.SETTINGS | cluster.OWN).items():
            patch.setenv(name, value)
        import ray
        from ray import serve

        # Ray takes a loopback address that it is to join for the outward one, so that is where other processes find it.
        connection = cluster.start(8, outward_address(), log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            if ray.is_initialized():  # the unit tests end it before
                serve.shutdown()
            connection.close()


def processes(title: str, parent: int | None = None) -> list[psutil.Process]:
    """Processes beneath this one (or another) whose title starts so; Ray titles them after actor and method."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


def holders(library: str, pid: int) -> tuple[list[str], list[str]]:
    """Which processes have loaded a shared library.

    Args:
        library: a part of its file's name.
        pid: of the topmost process.

    Returns:
        Command lines of those that have, and of those that have not.
    """
    top, found = psutil.Process(pid), ([], [])
    for process in [top, *top.children(recursive=True)]:
        try:
            found[not any(library in file.path for file in process.memory_maps())].append(" ".join(process.cmdline()))
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def kill_process(title: str) -> int:
    """SIGKILL the first process of that title.

    Returns:
        Its process id.
    """
    (process, *_) = processes(title)
    os.kill(process.pid, signal.SIGKILL)
    return process.pid


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE_S, pause: float = 0.02) -> Any:
    """Wait until something holds."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {patience:g} s in vain for {what}"
        time.sleep(pause)
    return found


class Saboteur(threading.Thread):
    """Does things to a run as soon as it has made so many updates.

    Args:
        folder: the run folder.
        deeds: (updates made, what to do).
    """

    def __init__(self, folder: Path, deeds: list[tuple[int, Callable[[], Any]]]) -> None:
        super().__init__(daemon=True)
        self._folder, self._deeds = folder, deeds
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Wait and do."""
        try:
            for updates, deed in self._deeds:
                wait_for(lambda: len(read_metrics(self._folder)) >= updates, f"{updates} updates")  # noqa: B023
                deed()
        except BaseException as error:
            self.error = error
            traceback.print_exc()  # the run may fail for want of the deed, and its error hide this one

    def finish(self) -> None:
        """Wait for the last deed; raise what went wrong."""
        self.join(PATIENCE_S)
        if self.error is not None:
            raise self.error


def start_process(
    arguments: Sequence[str], home: Path, job: str = "rlhf", joins: bool = False, **environment: str
) -> subprocess.Popen[str]:
    """`python rayjobs/<job>.py …` as a process group of its own with another home; its Ray is its own or this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "PYTEST"))}
    names = ["RAY_worker_niceness"]
    if joins:
        import ray

        names += ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
        arguments = ("--ray_address", ray.get_runtime_context().gcs_address, *arguments)
    kept |= {name: os.environ[name] for name in names if name in os.environ}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "rayjobs" / f"{job}.py"), *arguments],
        cwd=ROOT, env=kept | {"HOME": str(home)} | environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish_process(process: subprocess.Popen[str], patience: float = PATIENCE_S) -> str:
    """Wait for a run's process, and give back what it wrote."""
    try:
        return process.communicate(timeout=patience)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        print(process.communicate()[0])
        raise


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The small models, made once."""
    return _once("models", lambda: make_models(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all runs of the session that do not need their own: starting one is dear."""
    import ray

    if ray.is_initialized():  # another module's instance of this fixture; the first one ends it
        yield
        return
    with shared_ray():
        yield


@pytest.fixture(scope="session")
def served(models: Models, local_ray: None) -> str:
    """Application of a reward that runs share which do nothing to it: `served_rewards`."""
    from reward_servers.applications import start_reward_app
    from reward_servers.options import RewardAppOptions

    def start() -> str:
        start_reward_app(
            RewardAppOptions(
                name="served", reward="clip", model=str(models.clip), num_cpus=0.1, py_executable=beside.executable()
            )
        )
        return "served"

    return _once("served", start)


PAIR = "clip:1.0,tests.own_rewards:Brightness:0.5"
"""Two rewards, as `--reward` names them."""


@pytest.fixture(scope="session")
def served_pair(models: Models, local_ray: None) -> str:
    """Applications of the rewards of `PAIR` that runs share: `served_rewards`."""
    from reward_servers.applications import start_reward_apps
    from reward_servers.options import RewardAppOptions

    def start() -> str:
        rewards = {"clip": ("clip", str(models.clip)), "Brightness": ("tests.own_rewards:Brightness", None)}
        start_reward_apps([
            RewardAppOptions(
                name=f"pair-{name}", reward=reward, model=model, num_cpus=0.1, py_executable=beside.executable()
            )
            for name, (reward, model) in rewards.items()
        ])  # fmt: skip
        return "pair"

    return _once("served_pair", start)


@pytest.fixture(scope="session")
def undisturbed(models: Models, served: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with one rollout actor and one learner, which nothing disturbed."""
    from rayjobs.runtime.driver import run

    def make() -> Path:
        folder = run(options(models, tmp_path_factory.mktemp("runs") / "undisturbed", served_rewards=served))
        told = _told(tmp_path_factory)
        told.with_suffix(".partial").write_text(str(folder))
        told.with_suffix(".partial").rename(told)
        return folder

    return _once("undisturbed", make)


@pytest.fixture(scope="session")
def undisturbed_anywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, or what another worker of pytest-xdist made of it: its curve is the same, and a run is dear."""
    told = _told(tmp_path_factory)
    return Path(told.read_text()) if told.exists() else request.getfixturevalue("undisturbed")


def _told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers of pytest-xdist tell each other; their folders have the same parent."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed.txt"


_MADE: dict[str, Any] = {}


def _once(name: str, make: Callable[[], Any]) -> Any:
    """Session fixtures are instantiated once a module that imports them; what they make is made once."""
    if name not in _MADE:
        _MADE[name] = make()
    return _MADE[name]
