"""How an option of a job is declared: a pydantic field with all that its help and its checks need."""

import re
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

EMBEDDED = "embedded"
SECRET_URL = re.compile(r"://[^/\s@]*:[^/\s@]*@|[?&](api_?key|key|token|secret|password)=", re.IGNORECASE)
"""An address that carries a password or a key."""


def option(
    default: Any,
    group: str,
    unit: str,
    about: str,
    symbol: str = "-",
    shown: str = "",
    fix: str = "",
    resume: bool = True,
    **bounds: float,
) -> Any:
    """Declare an option.

    Args:
        default: The vetted setting; `None` where validation derives it.
        group: A key of the job's `groups`.
        unit: The value's unit.
        about: One sentence for the help.
        symbol: The paper's symbol, `-` when it has none.
        shown: How the help words the default when the bare value would not say it.
        fix: What to do about a wrong value, when the bounds alone would not say it.
        resume: Whether a resumed run must keep the value (it changes the arithmetic).
        **bounds: pydantic's `ge`, `gt`, `le`, `lt`.

    Returns:
        The pydantic field.
    """
    extra = {"group": group, "unit": unit, "symbol": symbol, "shown": shown, "fix": fix, "resume": resume}
    return Field(default, description=about, json_schema_extra=extra, **bounds)  # type: ignore[call-overload]


class Options(BaseModel):
    """What a job can be told, each field declared by `option`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    groups: ClassVar[dict[str, str]] = {}
    about: ClassVar[str] = ""

    @field_validator("*")
    @classmethod
    def _no_secret(cls, value: Any) -> Any:
        """Refuse an address with a password: options are written to the run's folder, and to trackers."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and SECRET_URL.search(text):
                raise ValueError("holds a password or key, which the run's config.json would keep; "
                                 "pass it in the environment")  # fmt: skip
        return value

    @classmethod
    def metadata(cls, name: str) -> dict[str, Any]:
        """What `option` noted about a field.

        Args:
            name: The option's name.

        Returns:
            Its group, unit, symbol, shown default, fix and whether a resumed run must keep it.
        """
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        return dict(extra)

    @classmethod
    def must_match(cls) -> list[str]:
        """Names of the options that a resumed run must keep, in their order of declaration."""
        return [name for name in cls.model_fields if cls.metadata(name)["resume"]]
