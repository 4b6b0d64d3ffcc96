"""Python looks for no garbage while libraries are imported, and for that of then as for all afterwards."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from sharpening.startup import loading


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
