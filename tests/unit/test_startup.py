"""Python looks for no garbage while libraries are imported, and they import nothing that nobody asks for."""

import gc
import importlib
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from sharpening.startup import loading, without


class Ring:
    """Refers to itself, so that only the collector ends it."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    assert gc.isenabled()
    gc.unfreeze()  # what `conftest.py` froze
    yield
    gc.enable()
    gc.freeze()


def test_nothing_is_searched_while_loading() -> None:
    searches: list[str] = []
    gc.callbacks.append(lambda phase, info: searches.append(phase))
    try:
        with loading():
            ring = weakref.ref(Ring())
            kept = [[] for _ in range(100_000)]  # far more than what starts a search
        assert searches == []
        assert ring() is not None
        young = {id(thing) for generation in (0, 1) for thing in gc.get_objects(generation)}
        assert not [thing for thing in kept if id(thing) in young]  # nor soon afterwards
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert ring() is None  # what became garbage meanwhile is no leak


def test_what_others_froze_stays_frozen() -> None:
    kept = [Ring() for _ in range(3)]
    gc.freeze()
    with loading():
        pass
    searched = {id(thing) for thing in gc.get_objects()}  # what is frozen is not among them
    assert not [ring for ring in kept if id(ring) in searched]


def test_an_error_on_the_way_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_loading_within_loading_ends_with_the_outer_one() -> None:
    @loading()
    def inner() -> bool:
        return gc.isenabled()

    with loading():
        assert not inner()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_what_is_not_wanted_cannot_be_imported_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    loaded = sys.modules["json"]
    with without("colorsys", "json"):
        assert sys.modules["json"] is loaded
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
    colorsys = importlib.import_module("colorsys")
    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_libraries_bring_no_experiment_tracker() -> None:
    code = """
import sys
from importlib.util import find_spec
import rayjobs.runtime.lean_deepspeed, sharpening.rewards.lean_open_clip
print(*("mlflow" in sys.modules, "wandb" in sys.modules, find_spec("mlflow") is None, find_spec("wandb") is None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False False False"
