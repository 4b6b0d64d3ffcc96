"""What must be right before a run is copied to an address, or goes on from one; imports neither torch nor Ray."""

from pathlib import Path

from rayjobs import machine
from rayjobs.errors import OptionError
from rayjobs.mirror import address as addresses
from rayjobs.mirror.identity import CONFIG, same_run
from rayjobs.mirror.store import Store, StoreError, open_store
from rayjobs.mirror.upload import remote_checkpoints
from rayjobs.options import JobOptions
from rayjobs.runtime import checkpoints

RESUME = "resume_from_checkpoint"


def settle_mirror(options: JobOptions) -> JobOptions:
    """Say in which folder a run works whose `--output_dir` is an address.

    Args:
        options: The options.

    Returns:
        A copy in which `output_dir` is the address in its normal form, `local_dir` the folder, and
        `resume_from_checkpoint` 'latest' or a path in that folder; the same options where there is no address.

    Raises:
        OptionError: If the address is wrong, or the folder makes no sense with it.
    """
    resume = options.resume_from_checkpoint
    there = (
        addresses.normal("output_dir", str(options.output_dir)) if addresses.is_address(options.output_dir) else None
    )
    named = None
    if addresses.is_address(resume):
        run, named = addresses.split_checkpoint(addresses.normal(RESUME, str(resume)))
        if options.output_dir is not None and there != run:
            raise OptionError(
                RESUME, f"belongs to the run at {run}",
                "leave --output_dir out, or pass that address; --local_dir says in which folder it goes on",
            )  # fmt: skip
        there = run
    if there is None:
        if options.local_dir is not None:
            raise OptionError(
                "local_dir", "is for runs that are copied to an address", "pass --output_dir, such as s3://bucket/run"
            )
        return options
    addresses.refuse_address("local_dir", options.local_dir)
    folder = machine.lasting(options.local_dir or f"runs/{addresses.name_of(there)}")
    if addresses.overlaps(there, folder):
        raise OptionError("local_dir", f"{folder} and {there} lie in one another", "pass another folder")
    settled = {"output_dir": there, "local_dir": str(folder)}
    if addresses.is_address(resume):
        settled[RESUME] = str(folder / checkpoints.FOLDER / named) if named else "latest"
    return options.model_copy(update=settled)


def check_address(options: JobOptions) -> Store | None:
    """Refuse an address that cannot be written to or has another run.

    Args:
        options: Settled options.

    Returns:
        The address; `None` where the run stays in its folder.

    Raises:
        OptionError: If it is refused.
    """
    if options.local_dir is None:
        return None
    store = open_store("output_dir", str(options.output_dir))
    folder = Path(options.local_dir)
    try:
        if store.read(CONFIG) is None:
            return store
        if options.resume_from_checkpoint is None:
            raise OptionError(
                "output_dir", f"{store.address} belongs to another run",
                "pass another address, or continue that run with --resume_from_checkpoint latest",
            )  # fmt: skip
        if (folder / CONFIG).is_file() and not same_run(folder, store):
            raise OptionError(
                "local_dir", f"{folder} has another run than {store.address}",
                "pass an empty folder, into which that run is fetched, or the run's own",
            )  # fmt: skip
    except StoreError as error:
        raise OptionError("output_dir", f"cannot read {store.address} ({error})", "try again") from error
    return store


def find_remote(options: JobOptions, store: Store) -> tuple[str | None, list[Path]]:
    """What an address has of the run that goes on.

    Args:
        options: Settled options.
        store: The address.

    Returns:
        Its configuration, and its whole checkpoints as they would be called here, oldest first.

    Raises:
        OptionError: If it cannot be read.
    """
    assert options.local_dir is not None
    try:
        config = store.read(CONFIG)
        whole, _ = remote_checkpoints(store.files(checkpoints.FOLDER))
    except StoreError as error:
        raise OptionError("output_dir", f"cannot read {store.address} ({error})", "try again") from error
    folder = Path(options.local_dir).expanduser().absolute() / checkpoints.FOLDER
    return None if config is None else config.decode(errors="replace"), [folder / name for name in whole]
