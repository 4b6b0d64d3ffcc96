"""A run's copies at its address: made by one thread of the driver, which holds up nothing and ends no run."""

import logging
import shlex
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rayjobs.errors import OptionError
from rayjobs.mirror.fetch import fetch
from rayjobs.mirror.record import Stamp, stamp
from rayjobs.mirror.store import Store, StoreError
from rayjobs.mirror.upload import Halted, Upload
from rayjobs.options import JobOptions
from rayjobs.runtime import checkpoints
from rayjobs.signals import interrupt_on_sigterm
from rayjobs.tracking.secrets import scrub
from sharpening.evaluation.run_folder import RunFolder

logger = logging.getLogger(__name__)

POLL_S = 2.0  # between two looks for new checkpoints
PATIENCE_S = 5.0  # after which the run's end says what it waits for


def prepare(options: JobOptions, say: Callable[[str], None]) -> Store | None:
    """Open the run's address and, for a run that goes on, fetch what is not here.

    Args:
        options: Validated options.
        say: Shows a line to the user.

    Returns:
        The address; `None` where the run stays in its folder.

    Raises:
        OptionError: If the address cannot be used.
    """
    if options.local_dir is None:
        return None
    try:
        store = Store(str(options.output_dir))
    except StoreError as error:
        raise OptionError("output_dir", f"cannot reach {options.output_dir} ({error})", "try again") from error
    resume = options.resume_from_checkpoint
    if resume is not None and not (Path(resume) / checkpoints.STATE).is_file():
        fetch(store, Path(options.local_dir), Path(resume).name, say)
    return store


def open_mirror(
    store: Store | None, options: JobOptions, folder: RunFolder, say: Callable[[str], None]
) -> "Mirror | None":
    """Claim the address and begin to copy.

    Args:
        store: The address, if the run has one.
        options: Validated options.
        folder: The run folder.
        say: Shows a line to the user.

    Returns:
        The mirror; `None` where the run stays in its folder.

    Raises:
        OptionError: If the address cannot be written to.
    """
    if store is None:
        return None
    mirror = Mirror(folder, store, options.checkpoints_total_limit, say)
    try:
        mirror.upload.claim()
    except StoreError as error:
        raise OptionError("output_dir", f"cannot write to {store.address} ({error})", "try again") from error
    except OSError as error:
        raise OptionError("local_dir", f"{folder.path} cannot be written ({error})", "make room") from error
    mirror.start()
    return mirror


class Mirror(threading.Thread):
    """Copies what is new whenever there is a new checkpoint, and everything at the end.

    However fast checkpoints come, one copying is going on and nothing queues: the next one takes what is there then.

    Args:
        folder: The run folder.
        store: Its address.
        keep: Newest checkpoints that the address keeps; all when `None`.
        say: Shows a line to the user.

    Attributes:
        upload: What does the copying.
    """

    def __init__(self, folder: RunFolder, store: Store, keep: int | None, say: Callable[[str], None]) -> None:
        super().__init__(name="mirror", daemon=True)
        self._folder, self._store, self._say = folder, store, say
        self._closing, self._halt = threading.Event(), threading.Event()
        self._done = threading.Event()  # `is_alive` says no after a `join` that Ctrl-C ended (Python 3.11)
        self._failed = ""  # what the last copying failed with
        self._seen: list[tuple[Path, Stamp | None]] = []
        self.upload = Upload(folder, store, keep, self._halt.is_set)

    def run(self) -> None:
        """Copy, until the run has ended and everything is copied."""
        try:
            while not self._closing.wait(POLL_S):
                found = self._seen
                with suppress(OSError):  # a network file system that stumbles is looked at again
                    found = self._checkpoints()
                if found != self._seen:
                    self._seen = found
                    self._copy()
            self._copy(pipeline=True)
        finally:
            self._done.set()

    def close(self) -> None:
        """Wait for the last copies, and say what the address does not have.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, which leave the rest for later.
        """
        self._closing.set()
        interrupted = None
        try:
            self._wait()
        except KeyboardInterrupt as error:
            interrupted = error
            self._halt.set()
            if not self._done.wait(1.0):  # nothing breaks a request off, and pyarrow waits for it when the process ends
                self._say("the process ends once the storage has answered, or given up on, what is under way")
        self._tell()
        if interrupted is not None:
            raise interrupted

    def _wait(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        if main:  # the run's own handlers, which wait for a checkpoint, are gone by now
            interrupt_on_sigterm()
        try:
            if not self._done.wait(PATIENCE_S):
                self._say(f"copying what is left to {self._store.address}; Ctrl-C leaves it for later")
            self._done.wait()
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)

    def _tell(self) -> None:
        """One line, whatever happened: what counts is what the address has."""
        try:
            missing = self.upload.missing(pipeline=True)
        except OSError as error:
            self._say(f"what {self._store.address} does not have is unknown ({error}); see with: {self._how()}")
            return
        if not missing:
            self._say(f"everything is at {self._store.address}")
            return
        names = sorted({name.split("/")[1] for name in missing if name.startswith(f"{checkpoints.FOLDER}/")})
        among = f", {', '.join(names)} among them" if names else ""
        files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        why = f" ({self._failed})" if self._failed else ""
        self._say(
            f"{files} ({sum(missing.values()) / 1e6:,.1f} MB{among}) are not at {self._store.address}{why}; the run's "
            f"folder has them all, and they are copied later with: {self._how()}"
        )

    def _how(self) -> str:
        return shlex.join(["python", "rayjobs/upload.py", str(self._folder.path), self._store.address])

    def _checkpoints(self) -> list[tuple[Path, Stamp | None]]:
        return [(path, stamp(path / checkpoints.STATE)) for path in checkpoints.listed(self._folder.checkpoints)]

    def _copy(self, pipeline: bool = False) -> None:
        """Copy what is new; the first time in a row that it fails is told."""
        began = time.monotonic()
        try:
            self.upload.copy(pipeline)
        except Halted:
            return
        except Exception as error:
            logger.info("copying to %s failed", self._store.address, exc_info=error)
            before, self._failed = self._failed, " ".join(scrub(str(error)).split()) or type(error).__name__
            if not before and not pipeline:  # at the end `close` tells
                self._say(
                    f"the run is not copied to {self._store.address} ({self._failed}); it goes on in "
                    f"{self._folder.path}, the next checkpoint tries again, and by hand it is: {self._how()}"
                )
            return
        if self._failed:
            self._failed = ""
            self._say(f"the run is copied to {self._store.address} again")
        logger.info("copied to %s in %.1f s", self._store.address, time.monotonic() - began)
