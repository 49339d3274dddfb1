"""Bytes that never become a request, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from app.api.http_protocol import MAX_HEAD_BYTES, RouterProtocol


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(
        greet, host="127.0.0.1", port=0, http=RouterProtocol, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def say(port: int, *pieces: bytes) -> bytes:
    """Everything that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read())
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await asyncio.wait_for(answer, 5)
    except ConnectionError:  # closed while we were still writing
        return await asyncio.gather(answer, return_exceptions=True) and b""
    finally:
        writer.close()


async def test_a_usual_request_is_answered(port: int) -> None:
    answer = await say(port, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nX-Long: ", b"GET /", b"GET / HTTP/1.1\r\nHost: h\r\nX-"],
    ids=["value", "path", "name"],
)
async def test_a_head_that_never_ends_is_cut_off(port: int, start: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)
    sent = 0
    closed = asyncio.create_task(reader.read())
    while not closed.done() and sent < 100 * MAX_HEAD_BYTES:
        writer.write(b"a" * 4096)
        sent += 4096
        await asyncio.sleep(0.001)
    writer.close()
    await asyncio.gather(closed, return_exceptions=True)
    assert sent < 4 * MAX_HEAD_BYTES


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HELLO\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: abc\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_so_in_the_shape_of_the_api(port: int, garbage: bytes) -> None:
    head, _, body = (await say(port, garbage)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


async def test_many_small_requests_on_one_connection_are_not_one_large_head(port: int) -> None:
    request = b"GET / HTTP/1.1\r\nHost: h\r\nX: %s\r\n" % (b"a" * 1000)
    last = request + b"Connection: close\r\n\r\n"
    answer = await say(port, *[request + b"\r\n"] * 200, last)
    assert answer.count(b"HTTP/1.1 200") == 201
