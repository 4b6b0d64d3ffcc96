"""The run's configuration, option by option, with what differs from the defaults marked."""

from dataclasses import dataclass
from typing import Any

from rayjobs.page.contents import Row


@dataclass(frozen=True)
class Setting:
    """One option.

    Attributes:
        name: The option's name.
        value: What the run had.
        default: What it would have had.
        about: The option's sentence.
        unit: Its unit.
        state: `changed`, `derived` (its default follows from other things), `default`, or `unknown` to this version.
    """

    name: str
    value: str
    default: str
    about: str
    unit: str
    state: str


def settings(config: Row) -> dict[str, list[Setting]]:
    """Every option by group.

    Args:
        config: What `config.json` holds.

    Returns:
        Settings by the group's heading, in the order of `--help`; those that this version of the project does not know
        come last.
    """
    from rayjobs.options import GROUPS, options_class

    values = {name: value for name, value in config.items() if name != "method"}
    try:
        model = options_class(config["method"])
    except (KeyError, ValueError):
        return {"options of a method that this version does not know": [_unknown(n, v) for n, v in values.items()]}
    found: dict[str, list[Setting]] = {group: [] for group in GROUPS}
    for name, field in model.model_fields.items():
        if name in values:
            extra = model.metadata(name)
            default, shown = _plain(field.default), str(extra["shown"])
            state = _state(values, name, default, shown)
            worded = shown if default is None and shown else _word(default)
            about = str(field.description)
            found[str(extra["group"])].append(
                Setting(name, _word(values[name]), worded, about, str(extra["unit"]), state)
            )
    unknown = [_unknown(name, value) for name, value in values.items() if name not in model.model_fields]
    told = {f"{group}: {GROUPS[group]}": entries for group, entries in found.items() if entries}
    return told | ({"options that this version does not know": unknown} if unknown else {})


def changed(groups: dict[str, list[Setting]]) -> list[Setting]:
    """The settings that differ from their defaults.

    Args:
        groups: From `settings`.

    Returns:
        Those, in order.
    """
    return [setting for group in groups.values() for setting in group if setting.state == "changed"]


def _state(values: Row, name: str, default: Any, shown: str) -> str:
    if values[name] == default or (shown in values and values[name] == values[shown]):
        return "default"
    # A default that stands for itself is None; validation has derived the value from the model or other options.
    return "derived" if default is None else "changed"


def _unknown(name: str, value: Any) -> Setting:
    return Setting(name, _word(value), "", "", "", "unknown")


def _plain(value: Any) -> Any:
    """A default as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return " ".join(_word(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
