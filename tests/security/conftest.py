"""A router on a socket, in front of a stand-in that keeps what reaches it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Client, serving
from tests.stand_in import StandIn, router_before

Connect = Callable[..., Awaitable[Client]]
Serve = Callable[..., Awaitable[Connect]]


@pytest.fixture
async def serve(tiny_gguf: Path, tmp_path: Path, upstream: StandIn) -> AsyncIterator[Serve]:
    """Starts a router with this section `api`; what it returns makes clients of it."""
    async with AsyncExitStack() as stack:

        async def start(**api: Any) -> Connect:
            app = router_before(upstream, tiny_gguf, tmp_path, api, aliases=["m", "org/m"])
            port = await stack.enter_async_context(serving(app))

            async def connect(buffer: int | None = None) -> Client:
                client = await Client.connect(port, buffer)
                stack.callback(client.leave)
                return client

            return connect

        yield start
