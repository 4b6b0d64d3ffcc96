"""Resuming: which checkpoint, of which run folder, and whether the options still are that run's."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayjobs.errors import OptionError
from rayjobs.mirror.checks import find_remote
from rayjobs.mirror.store import Store
from rayjobs.options import JobOptions
from rayjobs.rewards import scores_alike
from rayjobs.runtime import checkpoints
from sharpening.options.training import CONSTANT

LATEST = "latest"
NAME = "resume_from_checkpoint"


def owner(checkpoint: Path) -> Path | None:
    """The run folder a checkpoint lies in: the nearest parent with a `config.json` and `checkpoints/`.

    Args:
        checkpoint: A folder.

    Returns:
        The run folder, or `None`.
    """
    places = (checkpoint, *checkpoint.parents)
    return next((p for p in places if (p / "config.json").is_file() and (p / checkpoints.FOLDER).is_dir()), None)


def check_resume(options: JobOptions, store: Store | None = None) -> tuple[str | None, str | None]:
    """Find the checkpoint to go on from and refuse options that are not its run's.

    Args:
        options: Validated options.
        store: The run's address, if it has one: what it has and the folder has not is fetched later.

    Returns:
        The run folder and the checkpoint; two `None` when the run starts afresh.

    Raises:
        OptionError: If there is no such checkpoint, or an option that matters differs.
    """
    value = options.resume_from_checkpoint
    if value is None:
        return None, None
    if store is not None:
        return _check_copied(options, store, value)
    if value == LATEST:
        if options.output_dir is None:
            raise OptionError(NAME, "'latest' of which run?", "pass the run folder with --output_dir")
        asked = Path(options.output_dir).expanduser()
    else:
        asked = Path(value).expanduser()
    if not asked.is_dir():
        raise OptionError(NAME, f"there is no folder {asked}", "pass a run folder or one of its checkpoints")
    run_folder = owner(asked.absolute())
    if run_folder is None:
        raise OptionError(
            NAME, f"{asked} is no run folder and lies in none (config.json and checkpoints/)",
            "pass a run folder or one of its checkpoints, or leave it out to start afresh",
        )  # fmt: skip
    found = checkpoints.listed(run_folder / checkpoints.FOLDER)
    if not found:
        raise OptionError(NAME, f"{asked} has no checkpoint yet", "start afresh in another --output_dir")
    if asked.absolute() in (run_folder, run_folder / checkpoints.FOLDER):
        checkpoint = found[-1]
    elif asked.absolute() in found:
        checkpoint = asked.absolute()
    else:
        raise OptionError(NAME, f"{asked} is no checkpoint", f"pass {found[-1]} or 'latest'")
    given = options.output_dir
    if given is not None and Path(given).expanduser().resolve() != run_folder.resolve():
        raise OptionError("output_dir", f"the checkpoint belongs to {run_folder}", "leave --output_dir out")
    _check_same(options, run_folder)
    return given or str(run_folder), str(checkpoint)


def _check_copied(options: JobOptions, store: Store, value: str) -> tuple[str, str]:
    """The same for a run that is copied to an address: a checkpoint is in the folder, at the address, or in both."""
    folder = Path(str(options.local_dir)).expanduser().absolute()
    config, there = find_remote(options, store)
    here = (folder / "config.json").is_file()
    if not here and config is None:
        raise OptionError(
            NAME, f"neither {folder} nor {store.address} has a run", "pass its address, or leave it out to start afresh"
        )
    found = sorted(
        {*there, *(checkpoints.listed(folder / checkpoints.FOLDER) if here else [])},
        key=lambda path: checkpoints.update_of(path.name),
    )
    if not found:
        raise OptionError(NAME, f"{store.address} has no checkpoint yet", "start afresh at another --output_dir")
    asked = found[-1] if value == LATEST else Path(value).expanduser().absolute()
    if asked in (folder, folder / checkpoints.FOLDER):
        asked = found[-1]
    if asked not in found:
        raise OptionError(NAME, f"{asked} is no checkpoint of {store.address}", f"pass {found[-1]} or 'latest'")
    _check_same(options, folder, None if here else config)
    return str(options.local_dir), str(asked)


def _check_same(options: JobOptions, run_folder: Path, text: str | None = None) -> None:
    """Refuse options that differ from the run's (as its configuration says) where that changes its arithmetic."""
    path = run_folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8") if text is None else text)
        method = values.pop("method", options.method)
        before = type(options)(**values) if method == options.method else None
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise OptionError(NAME, f"{path} cannot be read", "start afresh in another --output_dir") from error
    if before is None:
        raise OptionError(NAME, f"the run in {run_folder} is one of {method}", "pass its --config, or start afresh")
    names = options.must_match()
    if options.lr_scheduler not in CONSTANT:
        names.append("max_train_steps")  # these schedules end where the run does
    for name in names:
        old, new = getattr(before, name), getattr(options, name)
        if old != new:
            raise OptionError(
                name, f"is {_text(new)}, but the run in {run_folder} has {_text(old)}",
                f"pass --{name} {_text(old)}, or start afresh in another --output_dir",
            )  # fmt: skip

    if scores_alike(before.reward_config) != scores_alike(options.reward_config):
        raise OptionError(
            "reward_config", f"differs from that of the run in {run_folder}, which its config.json holds",
            "pass the run's own with --config, or start afresh in another --output_dir",
        )  # fmt: skip


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
