"""Searches at inference: an unchanged model, any reward, a budget of denoiser evaluations. Imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sharpening.options import OptionError

if TYPE_CHECKING:
    from sharpening.search.base import Search

__all__ = ["SEARCHES", "load_search", "search_class"]

SEARCHES: dict[str, str] = {
    "random": "sharpening.search.random:RandomSearch",
    "zero_order": "sharpening.search.zero_order:ZeroOrderSearch",
    "paths": "sharpening.search.paths:PathSearch",
    "demon": "sharpening.search.demon:DemonSearch",
    "free2guide": "sharpening.search.free2guide:Free2GuideSearch",
    "fk_steering": "sharpening.search.fk_steering:FKSteering",
}
"""Import path of each search's class, by the name users give it."""


def search_class(name: str) -> Any:
    """Import a search's class.

    Args:
        name: a name in `SEARCHES`.

    Returns:
        The class; its attribute `Options` is the dataclass of its options.

    Raises:
        ValueError: if there is no such search.
    """
    if name not in SEARCHES:
        raise ValueError(f"unknown search '{name}'; choose one of {', '.join(SEARCHES)}")
    module, _, attribute = SEARCHES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_search(name: str, **options: Any) -> Search:
    """Make a search.

    Args:
        name: a name in `SEARCHES`.
        **options: its options; the others keep their defaults.

    Returns:
        The search.

    Raises:
        ValueError: if there is no such search.
        OptionError: if the search has no such option, or its value cannot work.
    """
    search = search_class(name)
    known = [field.name for field in fields(search.Options)]
    for option in options:
        if option not in known:
            raise OptionError(option, f"is no option of {name}; choose among {', '.join(known)}")
    return search(search.Options(**options))
