"""Copying a run folder to an address outside its run."""

from pathlib import Path

from rayjobs.errors import JobError, OptionError
from rayjobs.mirror.address import normal, overlaps
from rayjobs.mirror.identity import CONFIG, same_run
from rayjobs.mirror.store import StoreError, open_store
from rayjobs.mirror.upload import Upload
from sharpening.evaluation.run_folder import RunFolder


def copy_run(folder: Path, address: str) -> str:
    """Copy all that is new. Checkpoints that the address has and the folder has not stay there.

    Args:
        folder: The run folder; no run writes to it now.
        address: Where to.

    Returns:
        The address, in its normal form.

    Raises:
        OptionError: If the folder is no run's, or the address cannot be used.
        JobError: If something was not copied.
    """
    if not (folder / CONFIG).is_file():
        raise OptionError("run", f"{folder} is no run folder (no {CONFIG})", "pass one")
    there = normal("address", address)
    if overlaps(there, folder):
        raise OptionError("address", f"{there} and {folder} lie in one another", "pass another address")
    store = open_store("address", there)
    upload = Upload(RunFolder(folder), store, keep=None)
    try:
        if store.read(CONFIG) is not None and not same_run(folder, store):
            raise OptionError("address", f"{there} belongs to another run", "pass another address")
        upload.claim()
        upload.copy(pipeline=True)
    except StoreError as error:
        left = len(upload.missing(pipeline=True))
        raise JobError(f"{left} files are not at {there} ({error}); the same command goes on") from error
    except OSError as error:
        raise OptionError("run", f"{folder} cannot be used ({error})", "make it readable and writable") from error
    return there
