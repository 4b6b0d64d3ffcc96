"""torch.compile without a C++ compiler, counted."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture
def graphs() -> Iterator[CompileCounterWithBackend]:
    """Count what torch.compile captures, forward and backward; it runs as captured, for making C++ takes minutes."""
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.set_default_backend(counter)
    yield counter
    torch.compiler.set_default_backend(None)
    torch.compiler.reset()
