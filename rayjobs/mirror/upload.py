"""Copying what is new in a run folder to its address, so that what counts there is always whole.

A checkpoint counts by its `trainer_state.json`, here as there: at the address it is removed before anything else of the
checkpoint changes, and copied last. What the run keeps besides goes first, so that a run that is fetched knows no less
than its newest checkpoint. Checkpoints are copied from hard links, which the run's own tidying does not take away.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjobs.mirror import identity
from rayjobs.mirror.record import Record, Stamp, stamp
from rayjobs.mirror.store import PARTIAL, Store, StoreError
from rayjobs.runtime import checkpoints

if TYPE_CHECKING:
    from sharpening.evaluation.run_folder import RunFolder

OWN = ".mirror"  # in the run folder: the record and the links, which stay here
RECORD = "uploaded.json"
LINKS = "checkpoint"
PIPELINE_MARKER = "model_index.json"  # diffusers writes it last


class Halted(Exception):
    """The copying was told to stop."""


class Upload:
    """A run folder on its way to an address. One thread at a time uses it.

    Args:
        folder: The run folder.
        store: The address.
        keep: Newest checkpoints that the address keeps; all when `None`.
        halted: Asked between two files; says whether to stop.
    """

    def __init__(
        self, folder: "RunFolder", store: Store, keep: int | None, halted: Callable[[], bool] = lambda: False
    ) -> None:
        self._folder, self._store, self._keep, self._halted = folder, store, keep, halted
        self._own = folder.path / OWN
        self._record = Record(self._own / RECORD, store.address)

    def claim(self) -> None:
        """Have the address say whose it is, by the run's configuration and name; see what it has still got."""
        identity.ensure(self._folder.path)
        for lost in self._record.compare(self._store.files()):
            part = lost.split("/")
            if part[0] == checkpoints.FOLDER:  # a checkpoint counts as a whole
                self._record.forget("/".join([*part[:2], ""]))
        self._run_files(only=("config.json", "versions.json", identity.IDENTITY))
        self._record.write()

    def copy(self, pipeline: bool = False) -> None:
        """Copy what is new.

        Args:
            pipeline: Whether the final pipeline is whole, and goes too.
        """
        try:
            self._run_files()
            for checkpoint in reversed(self._kept()):
                if not self._has(checkpoint):
                    self._checkpoint(checkpoint)
            self._rotate()
            if pipeline:
                self._pipeline()
        finally:
            self._record.write()

    def missing(self, pipeline: bool = False) -> dict[str, int]:
        """What the address does not have yet.

        Args:
            pipeline: Whether the final pipeline counts.

        Returns:
            Bytes by name.
        """
        places = [*self._plain()]
        for checkpoint in self._kept():
            places += [] if self._has(checkpoint) else list(_regular(checkpoint))
        if pipeline and (self._folder.pipeline / PIPELINE_MARKER).is_file():
            places += _regular(self._folder.pipeline)
        stamps = {self._name(path): stamp(path) for path in places}
        return {name: found.size for name, found in stamps.items() if found and not self._record.has(name, found)}

    def _kept(self) -> list[Path]:
        """The folder's checkpoints that the address is to keep; there may be one more until the run tidies up."""
        found = checkpoints.listed(self._folder.checkpoints)
        return found[-self._keep :] if self._keep else found

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder.path).as_posix()

    def _has(self, checkpoint: Path) -> bool:
        """Whether the address has this very checkpoint; one that is made again has another time."""
        marker = checkpoint / checkpoints.STATE
        found = stamp(marker)
        return found is not None and self._record.has(self._name(marker), found)

    # -- what a run keeps besides --------------------------------------------------------------------------------

    def _plain(self) -> Iterator[Path]:
        """Everything but checkpoints, the final pipeline, what is still being written aside and what stays here."""
        apart = (self._folder.checkpoints.name, self._folder.pipeline.name, OWN)
        for place in sorted(self._folder.path.iterdir()):
            if place.name not in apart and not place.name.endswith(PARTIAL):
                yield from _regular(place)

    def _run_files(self, only: tuple[str, ...] = ()) -> None:
        for path in self._plain():
            if not only or self._name(path) in only:
                self._put(path, self._name(path))

    def _pipeline(self) -> None:
        """The final pipeline, its index last."""
        folder = self._folder.pipeline
        if (folder / PIPELINE_MARKER).is_file():
            for path in sorted(_regular(folder), key=lambda path: path == folder / PIPELINE_MARKER):
                self._put(path, self._name(path))

    def _put(self, path: Path, name: str) -> None:
        """Copy a file that is new; one that grows meanwhile is copied again later, one that has gone is left out."""
        found = stamp(path)
        if found is None or self._record.has(name, found):
            return
        if self._halted():
            raise Halted
        try:
            self._store.put(path, name)
        except Exception:
            if not path.exists():
                return
            raise
        self._record.note(name, found)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _checkpoint(self, checkpoint: Path) -> None:
        """Copy a checkpoint, its marker last and only if all the rest arrived whole."""
        name = self._name(checkpoint)
        with _pinned(checkpoint, self._own / LINKS) as pinned:
            found = stamp(pinned / checkpoints.STATE)
            if found is None:
                return  # rotated out in the meantime
            self._withdraw(name)
            stamps: dict[str, Stamp] = {}
            for path in _regular(pinned):
                inner = f"{name}/{path.relative_to(pinned).as_posix()}"
                its = stamp(path)
                if path != pinned / checkpoints.STATE and its is not None:
                    stamps[inner] = its
                    self._put(path, inner)
            arrived = self._store.files(name)
            if pinned == checkpoint and stamp(pinned / checkpoints.STATE) != found:
                return  # could not be pinned, and was rotated out while it was copied
            if arrived != {inner: its.size for inner, its in stamps.items()}:
                raise StoreError(f"{name} did not arrive whole")
            self._put(pinned / checkpoints.STATE, f"{name}/{checkpoints.STATE}")

    def _withdraw(self, name: str) -> None:
        """Remove what the address has of a checkpoint, its marker first."""
        self._record.forget(f"{name}/")
        self._record.write()
        if self._store.files(name):
            self._store.remove(f"{name}/{checkpoints.STATE}")
            self._store.remove_folder(name)

    def _rotate(self) -> None:
        """Remove the checkpoints that the limit leaves no room for, and what is left of copies that never ended."""
        whole, broken = remote_checkpoints(self._store.files(checkpoints.FOLDER))
        outdated = whole[: -self._keep] if self._keep else []
        for name in [*outdated, *broken]:
            if self._halted():
                raise Halted
            self._withdraw(f"{checkpoints.FOLDER}/{name}")


def remote_checkpoints(files: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Which checkpoints there are among the files at an address.

    Args:
        files: By name, relative to the address.

    Returns:
        Names of the whole ones, oldest first, and of those without a marker.
    """
    parts = [name.split("/") for name in files]
    found = {part[1] for part in parts if part[0] == checkpoints.FOLDER and len(part) > 2}
    names = sorted(filter(checkpoints.is_name, found), key=checkpoints.update_of)
    whole = [name for name in names if f"{checkpoints.FOLDER}/{name}/{checkpoints.STATE}" in files]
    return whole, [name for name in names if name not in whole]


def _regular(place: Path) -> Iterator[Path]:
    """Files in a folder, or the file itself; no links, and nothing that is still being written aside."""
    paths = [place]
    if place.is_dir() and not place.is_symlink():  # `walk` passes over folders that go away meanwhile
        paths = [Path(folder) / name for folder, _, names in os.walk(place) for name in names]
    # The shallow ones first: a tracker notes how far it came beside the folder it writes to. Copied in between, it
    # then tells something twice, which is better than never.
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        if path.is_file() and not path.is_symlink() and not path.name.endswith(PARTIAL):
            yield path


@contextmanager
def _pinned(checkpoint: Path, at: Path) -> Iterator[Path]:
    """A checkpoint under links of its own, so that it may be rotated out while it is copied.

    Args:
        checkpoint: A complete checkpoint.
        at: Where the links go, on the same file system.

    Yields:
        The folder with the links; the checkpoint itself where the file system has no links.
    """
    shutil.rmtree(at, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, at, copy_function=os.link)
        # Its marker goes first when it is discarded: still there, everything else was there to be linked.
        linked = (checkpoint / checkpoints.STATE).is_file()
    except OSError:
        linked = False
    try:
        yield at if linked else checkpoint
    finally:
        shutil.rmtree(at, ignore_errors=True)
