"""A router on a socket, in front of a stand-in that keeps what reaches it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.configuration.file import parse
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe
from tests.serving import Client, serving
from tests.stand_in import StandIn, llama_server_stand_in

Connect = Callable[..., Awaitable[Client]]
Serve = Callable[..., Awaitable[Connect]]


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    async with llama_server_stand_in() as found:
        yield found


@pytest.fixture
async def serve(tiny_gguf: Path, tmp_path: Path, upstream: StandIn) -> AsyncIterator[Serve]:
    """Starts a router with this section `api`; what it returns makes clients of it."""
    async with AsyncExitStack() as stack:

        async def start(**api: Any) -> Connect:
            tree = {
                "api": api,
                "system": {"log_dir": str(tmp_path / "logs")},
                "models": {"m": {"model_path": str(tiny_gguf), "aliases": ["org/m"]}},
            }
            launcher = FakeLauncher(upstream.port)
            app = create_app(
                parse(json.dumps(tree), tmp_path, {}), launcher=launcher, probe=FakeProbe(10_000)
            )
            port = await stack.enter_async_context(serving(app))

            async def connect(buffer: int | None = None) -> Client:
                client = await Client.connect(port, buffer)
                stack.callback(client.leave)
                return client

            return connect

        yield start
