"""A router before scripted llama-servers, spoken to in bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.proxy.json_fields import SMALL_BYTES
from tests.serving import Client, Reply, serving
from tests.stand_in import StandIn, llama_server_stand_in, router_before

CHAT, TUNNEL, LOAD = "/v1/chat/completions", "/upstream/tiny/tokenize", "/v1/models/load"


JSON = "Content-Type: application/json"


ANSWER = b'{"choices":[]}'


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    async with llama_server_stand_in(ANSWER) as found:
        yield found


@pytest.fixture
async def start(tiny_gguf: Path, tmp_path: Path, upstream: StandIn) -> AsyncIterator[Any]:
    """A router on a socket; its port."""
    async with AsyncExitStack() as stack:

        async def begin(**api: Any) -> int:
            app = router_before(upstream, tiny_gguf, tmp_path, api)
            return await stack.enter_async_context(serving(app))

        yield begin


def said(method: str, target: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(port: int, method: str, target: str, *headers: str, **more: Any) -> Reply:
    client = await Client.connect(port)
    reply = await client.ask(said(method, target, *headers, **more), method=method)
    client.leave()
    return reply


SMALL = json.dumps({"model": "tiny", "content": "Hello"}).encode()


LARGE = json.dumps({"content": "Hello" * SMALL_BYTES, "model": "tiny"}).encode()


KEYS: list[Any] = ["plain", {"key": "k1", "name": "silent"}, {"key": "k2", "name": "boss", "admin": True}]
