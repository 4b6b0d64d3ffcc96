"""The command line of a job: argparse made from the options model, one line for everything that is wrong."""

import argparse
import difflib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import ValidationError

from rayjobs.errors import OptionError
from rayjobs.options import GROUPS, RLHFOptions, metadata

DESCRIPTION = "RLHF trajectory sharpening of a diffusion model on Ray (arXiv 2502.12146, Algorithm 2)."
NAMES = tuple(RLHFOptions.model_fields)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `OptionError`."""

    def error(self, message: str) -> NoReturn:
        option, _, what = message.removeprefix("argument ").partition(": ")
        if not message.startswith("argument "):
            option, what = "help", message
        raise OptionError(option.split("/")[0].lstrip("-"), what, "see --help")


def _base_type(annotation: Any) -> Any:
    """`int` of `int | None`; anything else as it is."""
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _default(name: str) -> str:
    """A default as the help words it."""
    shown = metadata(name)["shown"]
    value = RLHFOptions.model_fields[name].default
    if shown:
        return str(shown)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(f"{item:g}" for item in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def build_parser() -> argparse.ArgumentParser:
    """The parser behind `--help`.

    Returns:
        A parser that leaves absent options out of its namespace and values as text, for pydantic to check.
    """
    parser = _Parser(
        prog="rlhf.py", description=DESCRIPTION, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage="python rayjobs/rlhf.py [--config FILE] [--option VALUE ...]",
        epilog="Every option shows its unit, its default and the paper's symbol.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )  # fmt: skip
    groups = {key: parser.add_argument_group(key, about) for key, about in GROUPS.items()}
    for name in NAMES:
        field, extra = RLHFOptions.model_fields[name], metadata(name)
        text = f"{field.description} [unit: {extra['unit']} | default: {_default(name)} | paper: {extra['symbol']}]"
        kind = _base_type(field.annotation)
        keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "dest": name}
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is tuple:
            keywords |= {"nargs": "+", "metavar": "FLOAT"}
        elif get_origin(kind) is Literal:
            keywords["metavar"] = "{" + ",".join(get_args(kind)) + "}"
        else:
            keywords["metavar"] = {int: "INT", float: "FLOAT"}.get(kind, "TEXT")
        groups[str(extra["group"])].add_argument(f"--{name}", **keywords)
    groups["output"].add_argument(
        "--config", metavar="FILE", help="options from a JSON or YAML file, such as a run's config.json; flags win "
        "[unit: file | default: none | paper: -]",
    )  # fmt: skip
    return parser


def _suggest(word: str) -> str:
    """What to do about a name that is no option."""
    close = difflib.get_close_matches(word, NAMES, n=1)
    return f"did you mean --{close[0]}?" if close else "see --help for the options"


def _load(path: str) -> Any:
    """Contents of a JSON or YAML file; what is no such file raises ValueError."""
    text = Path(path).read_text(encoding="utf-8")
    if not path.endswith((".yaml", ".yml")):
        return json.loads(text)
    yaml: Any = import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_config(path: str) -> dict[str, Any]:
    """Read options from a file.

    Args:
        path: A JSON or YAML file with a mapping from option names to values.

    Returns:
        The mapping.

    Raises:
        OptionError: If the file is absent or unreadable, or names something that is no option.
    """
    try:
        values = _load(path)
    except OSError as error:
        raise OptionError("config", f"cannot read {path} ({error.strerror})", "pass a JSON or YAML file") from error
    except ValueError as error:
        raise OptionError("config", f"{path} is not valid JSON or YAML ({error})", "correct the file") from error
    if not isinstance(values, dict):
        raise OptionError("config", f"{path} holds no mapping", "write option names and values into it")
    for key in values:
        if key not in NAMES:
            raise OptionError("config", f"{path} has '{key}', which is no option", _suggest(str(key)))
    return values


def _explain(error: ValidationError, from_file: str | None) -> tuple[str, str, str]:
    """The first thing that pydantic found: the option, what is wrong, what to do."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    value = first["input"]
    context = first.get("ctx", {})
    where = f" (in {from_file})" if from_file else ""
    kind = _base_type(RLHFOptions.model_fields[name].annotation)
    if first["type"] == "literal_error":
        return (name, f"unknown value '{value}'{where}", f"choose one of {', '.join(get_args(kind))}")
    words = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    for key, word in words.items():
        if key in context:
            limit = f"{context[key]:g}"
            remedy = (
                str(metadata(name)["fix"]) or f"pass a value {'of ' if word.startswith('at') else ''}{word} {limit}"
            )
            return (name, f"must be {word} {limit}, is {value}{where}", remedy)
    if first["type"] == "finite_number":
        return (name, f"must be a finite number, is {value}{where}", "pass an ordinary number")
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a number")
    if first["type"] == "value_error":
        return (name, f"{first['msg'].removeprefix('Value error, ')}, is {value}{where}", "see --help")
    return (name, f"'{value}' is not {expected}{where}", f"pass {expected}")


def parse(argv: Sequence[str]) -> RLHFOptions:
    """Read the command line and the file named by `--config`.

    Args:
        argv: Arguments, without the program's name.

    Returns:
        Options whose values are each within their bounds; `rayjobs.validation` checks what they point to.

    Raises:
        OptionError: If an option is unknown or its value is wrong.
    """
    namespace, unknown = build_parser().parse_known_args(list(argv))
    if unknown:
        word = unknown[0].split("=")[0]
        if not word.startswith("--"):
            raise OptionError("help", f"unexpected argument '{word}'", "options start with --, see --help")
        raise OptionError(word.lstrip("-"), "unknown option", _suggest(word.lstrip("-")))
    flags = vars(namespace)
    path = flags.pop("config", None)
    file_values = read_config(path) if path else {}
    try:
        return RLHFOptions(**{**file_values, **flags})
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        raise OptionError(*_explain(error, None if name in flags else path)) from error
