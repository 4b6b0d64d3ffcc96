"""Fetching what a run needs to go on on a machine that has nothing of it, or less than its address."""

import shutil
from collections.abc import Callable
from pathlib import Path

from rayjobs.errors import OptionError
from rayjobs.mirror.record import Record, stamp
from rayjobs.mirror.store import Store, StoreError
from rayjobs.mirror.upload import OWN, RECORD
from rayjobs.runtime import checkpoints

APART = (checkpoints.FOLDER, "pipeline")


def fetch(store: Store, folder: Path, checkpoint: str, say: Callable[[str], None]) -> None:
    """Fetch a checkpoint, and all that the run keeps besides checkpoints and its final pipeline.

    Nothing half fetched counts: the checkpoint gets its name last of all, and without it everything is fetched anew.

    Args:
        store: The run's address.
        folder: The run folder, which need not exist.
        checkpoint: The checkpoint's name.
        say: Shows a line to the user.

    Raises:
        OptionError: If something cannot be fetched or written.
    """
    try:
        names = _fetch(store, folder, checkpoint, say)
        _note(store, folder, names)
    except (StoreError, OSError) as error:
        said = error.strerror or error if isinstance(error, OSError) else error
        raise OptionError(
            "resume_from_checkpoint", f"{checkpoint} could not be fetched from {store.address} into {folder} ({said})",
            "the same command tries again",
        ) from error  # fmt: skip


def _fetch(store: Store, folder: Path, checkpoint: str, say: Callable[[str], None]) -> list[str]:
    """The same, with whatever errors come; gives back the names of what was fetched."""
    place = folder / checkpoints.FOLDER
    partial = checkpoints.partial_for(place, checkpoints.update_of(checkpoint))
    start = f"{checkpoints.FOLDER}/{checkpoint}/"
    files = {name: size for name, size in store.files().items() if ".." not in name.split("/")}
    wanted = {name: size for name, size in files.items() if name.startswith(start)}
    plain = [name for name in files if name.split("/")[0] not in APART]
    total = sum(wanted.values()) + sum(files[name] for name in plain)
    say(f"fetching {checkpoint} and what else the run needs from {store.address}, {total / 1e6:,.1f} MB")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, size in wanted.items():
            store.get(name, target := partial / name.removeprefix(start))
            if target.stat().st_size != size:
                raise StoreError(f"{name} did not arrive whole")
        if not (partial / checkpoints.STATE).is_file():
            raise StoreError(f"{checkpoint} is gone")
        for name in plain:
            store.get(name, folder / name)
        checkpoints.discard(place / checkpoint)
        partial.rename(place / checkpoint)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [*wanted, *plain]


def _note(store: Store, folder: Path, names: list[str]) -> None:
    """What was fetched need not be copied back."""
    record = Record(folder / OWN / RECORD, store.address)
    for name in names:
        found = stamp(folder / name)
        if found is not None:
            record.note(name, found)
    record.write()
