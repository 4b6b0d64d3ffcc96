"""Unit tests know of no Ray: one that integration tests of the same process left is ended, which frees cores."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_ray() -> None:
    """End it, if there is one."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        from ray import serve

        serve.shutdown()
        ray.shutdown()
