"""Whose run a folder and an address hold: two runs never share either."""

import json
import secrets
from pathlib import Path

from rayjobs.mirror.store import Store
from sharpening.evaluation.files import write_json

CONFIG = "config.json"  # which a run claims its folder by
IDENTITY = "mirror.json"
"""In the run folder and at the address: a random name of the run, drawn when it is first copied."""


def ensure(folder: Path) -> None:
    """Give a run its name, unless it has one.

    Args:
        folder: The run folder.
    """
    if not (folder / IDENTITY).is_file():
        write_json(folder / IDENTITY, {"run": secrets.token_hex(16)})


def same_run(folder: Path, store: Store) -> bool:
    """Whether the folder here and the address hold one run.

    Args:
        folder: A run folder.
        store: The address, with a run.

    Returns:
        Whether the names are one; where one of the two has none, such as a folder that was copied by hand, whether the
        configurations are.
    """
    here, there = _name(_read(folder / IDENTITY)), _name(store.read(IDENTITY))
    if here is None or there is None:
        return _read(folder / CONFIG) == store.read(CONFIG)
    return here == there


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _name(contents: bytes | None) -> str | None:
    try:
        return None if contents is None else str(json.loads(contents)["run"])
    except (ValueError, KeyError, TypeError):
        return None
