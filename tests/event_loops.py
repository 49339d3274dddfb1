"""On which event loops the tests of a module run: fixtures, for the modules that import them.

pytest-asyncio recommends a hook instead, which would have to choose for every test of the suite; a fixture
counts where it is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

WAYS = ("asgi", "socket")
"""How a test reaches a router: in its own process, or on a socket as in production."""


def loops() -> Iterator[Any]:
    """Production takes uvloop where there is one."""
    yield pytest.param(asyncio.DefaultEventLoopPolicy, id="asyncio")
    with contextlib.suppress(ImportError):  # not on Windows, not on PyPy
        import uvloop

        yield pytest.param(uvloop.EventLoopPolicy, id="uvloop")


def _policy_for(way: str) -> asyncio.AbstractEventLoopPolicy:
    kinds = [param.values[0] for param in loops()]
    policy: asyncio.AbstractEventLoopPolicy = kinds[-1 if way == "socket" else 0]()
    return policy


@pytest.fixture(params=loops(), name="event_loop_policy")
def on_both_loops(request: pytest.FixtureRequest) -> Any:
    """Each test twice."""
    return request.param()


@pytest.fixture(name="event_loop_policy")
def on_the_loop_of_production() -> asyncio.AbstractEventLoopPolicy:
    return _policy_for("socket")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Each test on both ways; it imports `on_the_loop_of_the_way` too."""
    return str(request.param)


@pytest.fixture(name="event_loop_policy")
def on_the_loop_of_the_way(way: str) -> asyncio.AbstractEventLoopPolicy:
    return _policy_for(way)
