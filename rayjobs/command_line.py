"""The command line of a job: argparse made from the options model, one line for everything that is wrong."""

import argparse
import difflib
import json
import tomllib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import ValidationError

from rayjobs.errors import OptionError, refuse_together
from rayjobs.familiar_flags import settle_reward, translate, translate_file
from rayjobs.mirror.address import refuse_address
from rayjobs.options import JobOptions, Options, options_class
from rayjobs.options.cluster import RayOptions, check_bind
from rayjobs.options.reward import RewardOptions
from sharpening.methods import METHODS


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


def _default(model: type[Options], name: str) -> str:
    """A default as the help words it."""
    shown = model.metadata(name)["shown"]
    value = model.model_fields[name].default
    if shown:
        return str(shown)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def build_parser(model: type[Options], program: str, methods: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser behind `--help`.

    Args:
        model: The options of the job's method.
        program: The job's file name.
        methods: What `--method` may name; a job of one method has no such option.

    Returns:
        A parser that leaves absent options out of its namespace and values as text, for pydantic to check.
    """
    chosen = " --method NAME" if methods else ""
    parser = _Parser(
        prog=program, description=model.about, allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage=f"python rayjobs/{program}{chosen} [--config FILE] [--option VALUE ...]",
        epilog="Every option shows its unit, its default and the paper's symbol.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )  # fmt: skip
    groups = {key: parser.add_argument_group(key, about) for key, about in model.groups.items()}
    if methods:
        groups["method"].add_argument(
            "--method", metavar="{" + ",".join(methods) + "}",
            help="what to run; with --help, shows that method's own options [unit: - | default: none | paper: -]",
        )  # fmt: skip
    for name in model.model_fields:
        field, extra = model.model_fields[name], model.metadata(name)
        default = _default(model, name)
        text = f"{field.description} [unit: {extra['unit']} | default: {default} | paper: {extra['symbol']}]"
        kind = _base_type(field.annotation)
        keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "dest": name}
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is tuple:
            item = get_args(kind)[0]
            keywords |= {"nargs": "+", "metavar": {int: "INT", float: "FLOAT"}.get(item, "TEXT")}
        elif get_origin(kind) is Literal:
            keywords["metavar"] = "{" + ",".join(get_args(kind)) + "}"
        else:
            keywords["metavar"] = {int: "INT", float: "FLOAT"}.get(kind, "TEXT")
        groups[str(extra["group"])].add_argument(f"--{name}", **keywords)
    if issubclass(model, RewardOptions):
        parser.add_argument("--base_url", help=argparse.SUPPRESS)  # the public code's; see `settle_reward`
    groups["output"].add_argument(
        "--config", metavar="FILE", help="options from a JSON, YAML or TOML file, such as a run's config.json; flags "
        "win [unit: file | default: none | paper: -]",
    )  # fmt: skip
    return parser


def _unknown(word: str, model: type[Options]) -> tuple[str, str]:
    """What is wrong with a name that is no option, and what to do."""
    owners = [name for name in METHODS if issubclass(model, JobOptions) and word in options_class(name).model_fields]
    if owners:
        return "no option of this method", f"leave it out; those that have it are {', '.join(owners)}"
    close = difflib.get_close_matches(word, [*model.model_fields, "method", "config"], n=1)
    return "unknown option", f"did you mean --{close[0]}?" if close else "see --help for the options"


def _load(path: str) -> Any:
    """Contents of a JSON, YAML or TOML file; what is no such file raises ValueError."""
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".toml"):
        return tomllib.loads(text)
    if not path.endswith((".yaml", ".yml")):
        return json.loads(text)
    yaml: Any = import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_config(path: str, option: str = "config") -> dict[str, Any]:
    """Read options from a file.

    Args:
        path: A JSON, YAML or TOML file with a mapping from option names to values.
        option: The option that names the file.

    Returns:
        The mapping.

    Raises:
        OptionError: If the file is absent or unreadable.
    """
    try:
        values = _load(path)
    except OSError as error:
        raise OptionError(option, f"cannot read {path} ({error.strerror})", "pass a JSON, YAML or TOML file") from error
    except ValueError as error:
        kind = "TOML" if path.endswith(".toml") else "JSON or YAML"
        raise OptionError(option, f"{path} is not valid {kind} ({error})", "correct the file") from error
    if not isinstance(values, dict):
        raise OptionError(option, f"{path} holds no mapping", "write option names and values into it")
    return values


def explain(error: ValidationError, from_file: str | None, model: type[Options]) -> tuple[str, str, str]:
    """The first thing that pydantic found.

    Args:
        error: What making the options raised.
        from_file: The file that the value stands in, if one.
        model: The options.

    Returns:
        The option, what is wrong, what to do.
    """
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    value = first["input"]
    context = first.get("ctx", {})
    where = f" (in {from_file})" if from_file else ""
    kind = _base_type(model.model_fields[name].annotation)
    if first["type"] == "literal_error":
        choices = get_args(get_args(kind)[0]) if get_origin(kind) is tuple else get_args(kind)
        return (name, f"unknown value '{value}'{where}", f"choose one of {', '.join(choices)}")
    words = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    for key, word in words.items():
        if key in context:
            limit = f"{context[key]:g}"
            remedy = (
                str(model.metadata(name)["fix"])
                or f"pass a value {'of ' if word.startswith('at') else ''}{word} {limit}"
            )
            return (name, f"must be {word} {limit}, is {value}{where}", remedy)
    if first["type"] == "finite_number":
        return (name, f"must be a finite number, is {value}{where}", "pass an ordinary number")
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a number")
    if first["type"] == "value_error":
        problem, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
        said = problem if remedy else f"{problem}, is {value}"
        return (name, f"{said}{where}", remedy or "see --help")
    return (name, f"'{value}' is not {expected}{where}", f"pass {expected}")


def parse(argv: Sequence[str], program: str = "rlhf.py", methods: Sequence[str] = ("rlhf",)) -> JobOptions:
    """Read the command line and the file named by `--config`.

    Args:
        argv: Arguments, without the program's name.
        program: The job's file name.
        methods: The methods that the job can run; with more than one, `--method` or the file says which.

    Returns:
        Options whose values are each within their bounds; `rayjobs.validation` checks what they point to.

    Raises:
        OptionError: If an option is unknown or its value is wrong.
    """
    first = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    first.add_argument("--config")
    first.add_argument("--method")
    asked = vars(first.parse_known_args(list(argv))[0])
    path = asked.get("config")
    file_values = read_config(path) if path else {}
    method = _method(asked.get("method"), file_values.pop("method", None), methods, "--help" in argv or "-h" in argv)
    options = read(options_class(method), argv, program, file_values, methods if len(methods) > 1 else ())
    assert isinstance(options, JobOptions)
    return options


def read(
    model: type[Options],
    argv: Sequence[str],
    program: str,
    file_values: dict[str, Any] | None = None,
    methods: Sequence[str] = (),
) -> Options:
    """Read a job's options off its command line.

    Args:
        model: What it can be told.
        argv: Arguments, without the program's name.
        program: The job's file name.
        file_values: What the file named by `--config` says; `None` has it read here.
        methods: What `--method` may name, where the job has it.

    Returns:
        Options whose values are each within their bounds.

    Raises:
        OptionError: If an option is unknown or its value is wrong.
    """  # fmt: skip
    namespace, unknown = build_parser(model, program, methods).parse_known_args(translate(argv, model))
    if unknown:
        if not unknown[0].startswith("--"):
            raise OptionError("help", f"unexpected argument '{unknown[0]}'", "options start with --, see --help")
        names = [word.split("=")[0].lstrip("-") for word in unknown if word.startswith("--")]
        refuse_together([OptionError(name, *_unknown(name, model)) for name in names])
    path = getattr(namespace, "config", None)
    if file_values is None:
        file_values = read_config(path) if path else {}
    file_values = translate_file(file_values, model)
    for key in file_values:
        if key not in model.model_fields and key != "base_url":
            problem, remedy = _unknown(key, model)
            said = "which is " + problem.replace("unknown", "no")
            raise OptionError("config", f"{path} has '{key}', {said}", remedy)
    flags = {name: value for name, value in vars(namespace).items() if name not in ("config", "method")}
    values = {**file_values, **flags}
    if issubclass(model, RewardOptions):
        values = settle_reward(values)
    try:
        made = model(**values)
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        raise OptionError(*explain(error, None if name in flags else path, model)) from error
    if not isinstance(made, JobOptions):  # only a run is copied to an address
        refuse_address("output_dir", getattr(made, "output_dir", None))
    if isinstance(made, RayOptions):
        check_bind(made)
    return made


def _method(asked: str | None, in_file: Any, methods: Sequence[str], only_help: bool) -> str:
    """The method that the command line or the file names; the first one for a help that names none."""
    if len(methods) == 1 and asked is not None:
        raise OptionError("method", "this job runs one method", "leave it out, or call rayjobs/finetune.py")
    method = asked or in_file or (methods[0] if len(methods) == 1 or only_help else None)
    if method is None:
        raise OptionError("method", "nothing says which method to run", f"choose one of {', '.join(methods)}")
    if method not in methods:
        where = "" if asked else " (in the file)"
        remedy = f"choose one of {', '.join(methods)}" if len(methods) > 1 else "call rayjobs/finetune.py"
        raise OptionError("method", f"unknown method '{method}'{where}", remedy)
    return str(method)
