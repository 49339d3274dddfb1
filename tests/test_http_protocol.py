"""Bytes that never become a request, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn

from app.api.http_protocol import CHECKED, MAX_HEAD_BYTES, MAX_PIPELINED, Head, RouterProtocol

WITHOUT_MODELS: Any = partial(RouterProtocol, errands=None)
CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
CHECKED_ANSWERS: dict[str, tuple[int, list[tuple[bytes, bytes]], list[bytes]]] = {
    "/unchanged": (304, [(b"content-length", b"5"), (b"etag", b"x")], [b""]),
    "/stream": (200, [(b"content-type", b"text/event-stream")], [b"data: 1\n\n", b"data: 2\n\n", b""]),
    "/whole": (200, [(b"content-length", b"4")], [b"four"]),
}


async def greet(scope: Any, receive: Any, send: Any) -> None:
    if answer := CHECKED_ANSWERS.get(scope["path"]):
        status, headers, parts = answer
        when = Head.SOON if scope["path"] == "/stream" else Head.WITH_BODY
        await send({"type": "http.response.start", "status": status, "headers": headers, CHECKED: when})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(
        greet, host="127.0.0.1", port=0, http=WITHOUT_MODELS, ws="none", lifespan="off", log_config=None
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


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("path", list(CHECKED_ANSWERS))
async def test_the_relays_answers_are_whole_and_the_connection_goes_on(
    port: int, path: str, method: bytes
) -> None:
    one = method + b" " + path.encode() + b" HTTP/1.1\r\nHost: h\r\n"
    answer = await say(port, one + b"\r\n" + one + b"Connection: close\r\n\r\n")
    status, headers, parts = CHECKED_ANSWERS[path]
    heads = re.findall(rb"HTTP/1.1 %d [^\r]*\r\n(?:[^\r]+\r\n)*\r\n" % status, answer)
    assert len(heads) == 2
    assert all(name + b": " + value in head for head in heads for name, value in headers)
    assert [b"connection: close" in head for head in heads] == [False, True]
    assert all(
        (b"transfer-encoding: chunked" in h) == (path == "/stream" and method == b"GET") for h in heads
    )
    body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) if path == "/stream" else b"".join(parts)
    rest = answer.replace(heads[0], b"").replace(heads[1], b"")
    assert rest == (2 * body if method == b"GET" else b"")


async def test_a_streams_head_does_not_wait_long_for_its_first_event(
    watched: int, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt can take minutes."""
    may_go_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        head = {"status": 200, "headers": [(b"content-type", b"text/event-stream")], CHECKED: Head.SOON}
        await send({"type": "http.response.start", **head})
        await may_go_on.wait()
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": False})

    monkeypatch.setattr(Watcher, "__call__", lambda _, *asgi: slow(*asgi))
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1"))
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    finally:
        may_go_on.set()
    assert head.startswith(b"HTTP/1.1 200")
    assert await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10) == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
    writer.close()


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


class Watcher:
    """An application that says when it was told that its client has left, and answers when it is let."""

    def __init__(self) -> None:
        self.watching: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        """What ends the watching, one for each request."""
        self.told: asyncio.Queue[bytes] = asyncio.Queue()
        """The path of a request whose client has left."""
        self.lost = asyncio.Event()
        self.may_watch = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_watch.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        connection: RouterProtocol = scope["router.connection"]
        await self.may_watch.wait()
        end = connection.watch(lambda: self.told.put_nowait(scope["raw_path"]))
        self.watching.put_nowait(end)
        await self.may_answer.wait()
        end()
        await greet(scope, receive, send)

    async def begun(self) -> Callable[[], None]:
        return await asyncio.wait_for(self.watching.get(), 10)

    async def left(self) -> bytes:
        """Told, and once only."""
        path = await asyncio.wait_for(self.told.get(), 10)
        await asyncio.wait_for(self.lost.wait(), 10)
        assert self.told.empty()
        return path


@pytest.fixture
async def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
async def watched(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    lose = RouterProtocol.connection_lost

    def lost(connection: RouterProtocol, error: Exception | None) -> None:
        lose(connection, error)
        watcher.lost.set()

    monkeypatch.setattr(RouterProtocol, "connection_lost", lost)
    config = uvicorn.Config(
        watcher, host="127.0.0.1", port=0, http=WITHOUT_MODELS, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    watcher.may_watch.set()
    watcher.may_answer.set()
    server.should_exit = True
    await task


def post(path: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (path, size, body)


@pytest.mark.parametrize(
    "said",
    [
        post(b"/1"),
        post(b"/1", bytes(3 * 2**20)),  # uvicorn stops reading while a large body waits
        post(b"/1") + post(b"/2"),  # and while a second request waits
        post(b"/1", bytes(2**17)) + post(b"/2", bytes(2**14)),
    ],
    ids=["short", "large", "pipelined", "both"],
)
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_who_watches_is_told_once_that_the_client_left(
    watcher: Watcher, watched: int, said: bytes, how: str
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(said)
    await writer.drain()
    await watcher.begun()
    assert watcher.told.empty()
    if how == "end":
        writer.close()
    else:
        writer.transport.abort()
    assert await watcher.left() == b"/1"


async def test_who_stopped_watching_is_not_told(watcher: Watcher, watched: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1"))
    (await watcher.begun())()
    writer.close()
    await asyncio.wait_for(watcher.lost.wait(), 10)
    assert watcher.told.empty()


async def test_who_watches_too_late_is_told_at_once(watcher: Watcher, watched: int) -> None:
    watcher.may_watch.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1"))
    writer.close()
    await asyncio.wait_for(watcher.lost.wait(), 10)
    watcher.may_watch.set()
    assert await watcher.left() == b"/1"
    (await watcher.begun())()


async def test_an_answered_request_is_not_told_of_the_end_of_its_connection(
    watcher: Watcher, watched: int
) -> None:
    watcher.may_answer.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    for _ in range(2):
        writer.write(post(b"/1"))
        await reader.readuntil(b"hi")
    writer.close()
    await asyncio.wait_for(watcher.lost.wait(), 10)
    assert watcher.told.empty()


async def test_a_closed_connection_is_told_once() -> None:
    """Between `close` and `connection_lost`, where watching comes too late and the loss is still to come."""
    config = uvicorn.Config(greet, http=WITHOUT_MODELS, lifespan="off", log_config=None)
    protocol = RouterProtocol(config, uvicorn.Server(config).server_state, {}, errands=None)
    transport = Mock(is_closing=lambda: True)
    protocol.connection_made(transport)
    told: list[None] = []
    end = protocol.watch(lambda: told.append(None))
    assert len(told) == 1
    protocol.connection_lost(None)
    end()
    assert len(told) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"HELLO\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 8 * MAX_HEAD_BYTES,
    ],
    ids=["method", "header", "endless"],
)
async def test_garbage_is_no_answer_to_the_request_before_it(
    watcher: Watcher, watched: int, garbage: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1"))
    await watcher.begun()
    writer.write(garbage)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert await watcher.left() == b"/1"


async def test_a_body_that_is_no_http_is_told_so(watched: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(CHUNKED_HEAD + b"no number\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400")
    writer.close()


# --- memory


def connected() -> tuple[RouterProtocol, Mock]:
    """A connection whose pieces a test cuts itself."""
    config = uvicorn.Config(greet, http=WITHOUT_MODELS, lifespan="off", log_config=None)
    config.load()
    protocol = RouterProtocol(config, uvicorn.Server(config).server_state, {}, errands=None)
    transport = Mock()
    transport.is_closing = lambda: transport.close.called
    protocol.connection_made(transport)
    return protocol, transport


LARGE_CHUNK = b"%x\r\n%b\r\n" % (2 * MAX_HEAD_BYTES, bytes(2 * MAX_HEAD_BYTES))


@pytest.mark.parametrize(
    ("piece", "more"),
    [
        (post(b"/1", bytes(2 * MAX_HEAD_BYTES)) + b"GET / HTTP/1.1\r\nX: ", b"a"),
        (CHUNKED_HEAD + LARGE_CHUNK + b"0\r\nX: ", b"a"),
        (CHUNKED_HEAD + LARGE_CHUNK + b"0\r\n", b"a: b\r\n"),
    ],
    ids=["head", "trailer", "trailers"],
)
async def test_what_came_before_makes_no_head_too_large(piece: bytes, more: bytes) -> None:
    protocol, transport = connected()
    protocol.data_received(piece)
    protocol.data_received(more * (MAX_HEAD_BYTES // len(more)))
    transport.close.assert_not_called()
    protocol.data_received(more)
    transport.close.assert_called()
    protocol.connection_lost(None)


async def test_nothing_else_is_said_in_the_middle_of_an_answer() -> None:
    protocol, transport = connected()
    protocol.data_received(CHUNKED_HEAD)
    protocol.cycle.response_started = True
    protocol.data_received(b"no number\r\n")
    transport.write.assert_not_called()
    transport.close.assert_called()
    protocol.connection_lost(None)


async def test_chunks_are_no_head_wherever_they_are_cut() -> None:
    protocol, transport = connected()
    protocol.data_received(CHUNKED_HEAD)
    for _ in range(4):
        protocol.data_received(LARGE_CHUNK + b"5\r\n")
        protocol.data_received(b"abcde\r\n")
    transport.close.assert_not_called()
    protocol.connection_lost(None)


async def test_trailers_are_not_kept() -> None:
    protocol, _ = connected()
    protocol.data_received(CHUNKED_HEAD + b"0\r\nHost: evil.example\r\nX: y\r\n")
    assert [name for name, _ in protocol.headers] == [b"host", b"transfer-encoding"]
    protocol.data_received(b"\r\n")
    protocol.connection_lost(None)


async def test_who_asks_without_end_and_reads_no_answer_is_cut_off() -> None:
    protocol, transport = connected()
    transport.pause_reading = transport.resume_reading = Mock()
    for _ in range(20):
        protocol.data_received(post(b"/1") * MAX_PIPELINED)
        protocol.flow.resume_reading()  # as after each answer
        if transport.close.called:
            break
    transport.close.assert_called()
    assert len(protocol.pipeline) <= MAX_PIPELINED + 1
    protocol.connection_lost(None)
