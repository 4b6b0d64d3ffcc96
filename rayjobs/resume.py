"""Resuming: which checkpoint, of which run folder, and whether the options still are that run's."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayjobs.errors import OptionError
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


def check_resume(options: JobOptions) -> tuple[str | None, str | None]:
    """Find the checkpoint to go on from and refuse options that are not its run's.

    Args:
        options: Validated options.

    Returns:
        The run folder and the checkpoint; two `None` when the run starts afresh.

    Raises:
        OptionError: If there is no such checkpoint, or an option that matters differs.
    """
    value = options.resume_from_checkpoint
    if value is None:
        return None, None
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


def _check_same(options: JobOptions, run_folder: Path) -> None:
    """Refuse options that differ from the run's where that changes its arithmetic."""
    path = run_folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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
