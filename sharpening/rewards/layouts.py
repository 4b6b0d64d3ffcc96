"""What a reward's weights files must hold, told from names and shapes of tensors; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sharpening.checks import HUB_ID, ModelFolderError, check_safetensors, check_torch_file
from sharpening.rewards.base import RewardModelError

MODEL, CHECKPOINT = "reward_model", "reward_checkpoint"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_HUB_FILE = re.compile(rf"({HUB_ID.pattern})(?::(.+))?")

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""


def hub_parts(value: str) -> tuple[str, str] | None:
    """Repository and path of `owner/name` or `owner/name:path`.

    Args:
        value: what an option says.

    Returns:
        Both, the path empty where there is none; None if the value is no hub id, but names a file.
    """
    found = _HUB_FILE.fullmatch(value)
    if found is None or (found[2] is None and value.endswith(SUFFIXES)):
        return None
    return found[1], found[2] or ""


def local_weights(value: str, option: str, wanted: str = "", called: str = "") -> Path | None:
    """The weights file that a value names, where it lies here.

    Args:
        value: a file, a folder that holds one weights file, or a hub id (`owner/name`, `owner/name:path`).
        option: the option that says so, for the message.
        wanted: regular expression that the file's name must match.
        called: the same in words, for the message.

    Returns:
        The file; None if only the hub has it.

    Raises:
        RewardModelError: if there is no such file, or several.
    """
    path = Path(value).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        return path / choose_weights(names, value, option, wanted, called)
    if hub_parts(value) is None or path.parent.exists():
        raise RewardModelError(f"there is no file, folder or hub id {value}; pass one as --{option}", option)
    return None


def choose_weights(names: Iterable[str], where: str, option: str, wanted: str = "", called: str = "") -> str:
    """The one weights file among names, a safetensors file before others.

    Args:
        names: paths of files.
        where: what holds them, for the message.
        option: the option that says so.
        wanted: regular expression that the file's name must match.
        called: the same in words.

    Returns:
        Its path.

    Raises:
        RewardModelError: if there is none, or several.
    """
    files = [name for name in names if name.endswith(SUFFIXES) and re.search(wanted, Path(name).name.lower())]
    safe = [name for name in files if name.endswith(".safetensors")]
    for candidates in (safe, files):
        if len(candidates) == 1:
            return candidates[0]
    what = f"weights file for {called}" if called else "weights file"
    if files:
        raise RewardModelError(
            f"{where} holds more than one {what} ({some(files)}); name one as --{CHECKPOINT}", option
        )
    raise RewardModelError(
        f"{where} holds no {what} ({', '.join(SUFFIXES)}); pass another as --{option}, or the file as --{CHECKPOINT}",
        option,
    )


def file_shapes(path: Path, option: str) -> Shapes | None:
    """Check that a weights file is whole, and read what its header says.

    Args:
        path: the file.
        option: the option that names it.

    Returns:
        Shapes by name, without the prefix `module.` of distributed training; None for a torch file, which only torch
        can read.

    Raises:
        RewardModelError: if the file is absent, truncated or of another format.
    """
    try:
        if path.suffix != ".safetensors":
            check_torch_file(path)
            return None
        return {bare(name): shape for name, (_, shape) in check_safetensors(path).items()}
    except ModelFolderError as error:
        raise RewardModelError(str(error), option) from error


def check_layout(path: Path, found: Shapes, expected: Shapes, remedy: str, option: str, ignored: str = "") -> None:
    """Refuse weights that are not those of a model.

    Args:
        path: the file, for the message.
        found: shapes of what it holds.
        expected: shapes of what the model has.
        remedy: what to do.
        option: the option that names the file.
        ignored: regular expression of names that may be there besides.

    Raises:
        RewardModelError: naming the first tensor that is missing, of another shape or unexpected.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise RewardModelError(f"{path} lacks {some(missing)}; {remedy}", option)
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise RewardModelError(
                f"{path} holds {name} of shape {list(found[name])} where {list(shape)} is expected; {remedy}", option
            )
    unexpected = [name for name in found if name not in expected and not re.fullmatch(ignored, name)]
    if unexpected:
        raise RewardModelError(f"{path} holds {some(unexpected)}, which no such model has; {remedy}", option)


def layers(found: Shapes, pattern: str) -> int:
    """How many numbered parts a model has.

    Args:
        found: shapes by name.
        pattern: regular expression with one group, the number.

    Returns:
        The highest number, plus one; 0 if there are none.
    """
    numbers = [int(match[1]) for match in (re.match(pattern, name) for name in found) if match]
    return max(numbers, default=-1) + 1


def bare(name: str) -> str:
    """A tensor's name without the `module.` that distributed training puts before it."""
    return name.removeprefix("module.")


def some(names: list[str]) -> str:
    """The first of several names, and how many there are besides."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
