"""The processes a benchmark starts: the process with torch, and the Ray job. Imports neither torch nor Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rayjobs.errors import JobError
from rayjobs.options import JobOptions

ROOT = Path(__file__).resolve().parents[2]
TAIL = 15  # lines of a failed process that an error shows
PATIENCE = 60.0  # seconds that a process has to end by itself


class MeasurementFailed(JobError):
    """A measured process failed; what it said last went to standard error."""


def environment() -> dict[str, str]:
    """Environment of a measured process: finds the project, joins no cluster, and takes its threads from options."""
    dropped = ("RAY_ADDRESS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    paths = [str(ROOT), *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return inherited | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


class TorchProcess:
    """A process of `rayjobs.benchmark.worker`, idle between jobs."""

    def __init__(self, options: JobOptions, threads: int, say: Callable[[str], None]) -> None:
        """Start it.

        Args:
            options: the Ray job's validated options.
            threads: torch threads.
            say: where its progress goes.
        """
        self._say = say
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rayjobs.benchmark.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env=environment(), start_new_session=True,
        )  # fmt: skip
        self._send({"config": options.config(), "threads": threads, "device": device_of(options)})

    def __enter__(self) -> TorchProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it died, and its error was shown
            self._process.stdin.close()
        if kind is not None:
            self._process.terminate()
        _wait(self._process)
        self._process.stdout.close()
        self._errors.close()

    def call(self, job: str, **arguments: Any) -> Any:
        """Have a job done.

        Args:
            job: a job of `rayjobs.benchmark.worker`.
            **arguments: its arguments.

        Returns:
            Its result.

        Raises:
            MeasurementFailed: if it fails.
        """
        self._send({"job": job, "arguments": arguments})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "result" in message:
                return message["result"]
            if "error" in message:
                raise self._failed(f"{job}: {message['error']}")
            self._say(message["progress"])
        raise self._failed(f"{job}: the process ended")

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed("the process ended") from error

    def _failed(self, reason: str) -> MeasurementFailed:
        _wait(self._process)
        self._errors.seek(0)
        for line in self._errors.read().splitlines()[-TAIL:]:
            self._say(f"| {line}")
        return MeasurementFailed(f"a measurement failed: {reason}")


def run_ray_job(options: JobOptions, updates: int, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run `rayjobs/rlhf.py` without evaluation, and read what it measured.

    Args:
        options: validated options.
        updates: updates it makes.
        folder: its run folder, which does not exist yet.
        say: where its progress goes.

    Returns:
        Its metrics, a row an update.

    Raises:
        MeasurementFailed: if it fails or makes fewer updates.
    """
    from sharpening.evaluation.metrics import read_metrics

    config = folder.parent / f"{folder.name}.json"
    config.write_text(json.dumps(options.config()), encoding="utf-8")
    # The one checkpoint after the last update lies outside every measured update.
    command = [
        sys.executable, str(ROOT / "rayjobs" / "rlhf.py"), "--config", str(config), "--output_dir", str(folder),
        "--max_train_steps", str(updates), "--skip_evaluation", "--checkpointing_steps", str(updates),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment(),
        start_new_session=True,  # Ctrl-C reaches it once, from here, and what ends its Ray does not reach us
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            say(f"| {line.rstrip()}")
        process.wait()
    finally:
        if process.poll() is None:  # interrupted: it ends its Ray by itself when it is told to
            process.send_signal(signal.SIGTERM)
            _wait(process)
        process.stderr.close()
    rows = read_metrics(folder)
    if process.returncode or len(rows) != updates:
        raise MeasurementFailed(f"the Ray job made {len(rows)} of {updates} updates (exit code {process.returncode})")
    return rows


def device_of(options: JobOptions) -> str:
    """`cuda` or `cpu`, as validation settled it."""
    return "cuda" if options.use_gpu == "yes" else "cpu"


def _wait(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended, and see to it that it does."""
    for end in (lambda: None, process.terminate, process.kill):
        end()
        try:
            process.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue
