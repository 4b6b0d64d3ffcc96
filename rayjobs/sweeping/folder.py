"""A sweep's folder: claimed by a new sweep, found again by one that goes on. Nothing heavy is imported."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rayjobs import machine
from rayjobs.errors import OptionError
from rayjobs.options.cluster import RayOptions
from rayjobs.sweeping.options import SweepOptions
from sharpening.evaluation.files import write_json

CONFIG = "sweep.json"
PLACES = {"output_dir", "resume", *RayOptions.model_fields}
"""Options that say where a sweep is, and are not kept."""


def claim(options: SweepOptions, job_flags: Sequence[str]) -> tuple[SweepOptions, list[str], Path]:
    """Make the sweep's folder, or go on with the one that is named.

    Args:
        options: as parsed.
        job_flags: the job's own.

    Returns:
        Options and flags, of a resumed sweep its own, and the folder.

    Raises:
        OptionError: If the folder belongs to something else, or there is nothing to go on with.
    """
    named = options.output_dir or f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(machine.lasting(named)).expanduser()
    path = folder / CONFIG
    try:
        if options.resume:
            if options.output_dir is None or not path.is_file():
                raise OptionError("resume", f"{folder} holds no sweep", "name its folder with --output_dir")
            known = json.loads(path.read_text(encoding="utf-8"))
            kept = SweepOptions(**known["sweep"])
            here = {name: getattr(options, name) for name in PLACES}
            return kept.model_copy(update=here), list(known["job"]), folder
        if folder.exists() and any(folder.iterdir()):
            raise OptionError(
                "output_dir", f"{folder} is not empty", "pass another folder, or --resume to go on with its sweep"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"sweep": options.model_dump(mode="json", exclude=PLACES), "job": list(job_flags)})
    except (OSError, ValueError) as error:
        raise OptionError("output_dir", f"{folder} cannot be used ({error})", "pass another folder") from error
    return options, list(job_flags), folder
