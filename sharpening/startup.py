"""What makes a process that computes ready sooner."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import libraries and load models without Python's search for garbage, in a `with` block or as a decorator.

    torch, diffusers and transformers make a million objects and no garbage, among which Python would look again and
    again: a sixth of the time that importing them takes. What was made meanwhile counts as old afterwards, as what has
    survived its searches does, and is collected like it once it is garbage. Only at the start, that is: not once
    something else has been frozen (`gc.freeze`).

    Yields:
        Nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what Ray Serve froze in a replica that has started stays so
            # Both move lists, and search nothing: all to where nothing is collected, and from there to the oldest.
            gc.freeze()
            gc.unfreeze()
        gc.enable()


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Import libraries in a `with` block as if others, which they import for nothing if they find them, were absent.

    Args:
        *names: Modules that must not be imported; those that have been already are left alone.

    Yields:
        Nothing.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own mark of what cannot be imported
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
