"""An unmodified uvicorn behind the protocol in front, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import socket
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar

import pytest
import uvicorn

from app.access.api_keys import Rules
from app.access.sessions import Sessions
from app.core.config import ApiConfig, Config
from app.observability.refusal_log import RefusalLog
from app.proxy.gateway import Gateway
from app.proxy.http_server import ProxyProtocol
from app.proxy.loop_turns import OWN_COST, TURN_COST, LoopTurns
from app.proxy.receive_buffer import MAX_AHEAD_BYTES
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_reader import MAX_HEAD_BYTES
from tests.router_process import until
from tests.serving import soon, started

CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def config_of(
    app: Any, protocol: type[ProxyProtocol] = ProxyProtocol, paths: Collection[str] = ()
) -> uvicorn.Config:
    """A server without models."""
    gateway = Gateway(RefusalLog(), ClientMemory(Config(), 1024), LoopTurns(dict.fromkeys(paths, OWN_COST)))
    gateway.admit_by(Rules(ApiConfig(), Sessions()), browsers_elsewhere=False)
    front: Any = partial(protocol, gateway=gateway)
    return uvicorn.Config(
        app, host="127.0.0.1", port=0, http=front, ws="none", lifespan="off", log_config=None
    )


@asynccontextmanager
async def serving(config: uvicorn.Config) -> AsyncIterator[int]:
    server = await started(uvicorn.Server(config))
    yield server.servers[0].sockets[0].getsockname()[1]
    await server.shutdown()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(config_of(greet)) as found:
        yield found


async def say(port: int, *pieces: bytes) -> bytes:
    """Everything that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read())
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await soon(answer)
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
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # nothing piles up on the way
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection)
    writer.transport.set_write_buffer_limits(0)
    writer.write(start)
    sent = 0
    closed = asyncio.create_task(reader.read())
    while not closed.done() and sent < 100 * MAX_HEAD_BYTES:
        writer.write(b"a" * 4096)
        sent += 4096
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        await asyncio.sleep(0)  # the server reads what has come
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
        self.watching: asyncio.Queue[bytes] = asyncio.Queue()
        """The path of each request that has come whole."""
        self.told: asyncio.Queue[bytes] = asyncio.Queue()
        """The path of a request whose client has left."""
        self.lost = asyncio.Event()
        self.may_watch = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_watch.set()
        self.most_at_once = self._now = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await self._answer(scope, receive, send)
        finally:
            self._now -= 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        self.watching.put_nowait(scope["raw_path"])
        await self.may_watch.wait()
        listening = asyncio.create_task(receive())
        answering = asyncio.create_task(self.may_answer.wait())
        await asyncio.wait([listening, answering], return_when=asyncio.FIRST_COMPLETED)
        answering.cancel()
        if listening.done():
            self.told.put_nowait(scope["raw_path"])
            return
        listening.cancel()
        await greet(scope, receive, send)

    async def begun(self) -> bytes:
        return await soon(self.watching.get())

    async def left(self) -> bytes:
        """Told, and once only."""
        path = await soon(self.told.get())
        await soon(self.lost.wait())
        assert self.told.empty()
        return path


@pytest.fixture
async def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
async def watched(watcher: Watcher) -> AsyncIterator[int]:
    class Told(ProxyProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            watcher.lost.set()

    async with serving(config_of(watcher, Told)) as found:
        yield found
        watcher.may_watch.set()
        watcher.may_answer.set()


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
async def test_an_application_is_told_once_that_its_client_left(
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


async def test_who_watches_too_late_is_told_at_once(watcher: Watcher, watched: int) -> None:
    watcher.may_watch.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1"))
    writer.close()
    await soon(watcher.lost.wait())
    watcher.may_watch.set()
    assert await watcher.left() == b"/1"


async def test_an_answered_request_is_not_told_of_the_end_of_its_connection(
    watcher: Watcher, watched: int
) -> None:
    watcher.may_answer.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    for _ in range(2):
        writer.write(post(b"/1"))
        await reader.readuntil(b"hi")
    writer.close()
    await soon(watcher.lost.wait())
    assert watcher.told.empty()


@pytest.mark.parametrize(
    "garbage",
    [
        b"HELLO\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 8 * MAX_HEAD_BYTES,
    ],
    ids=["method", "header", "endless"],
)
async def test_garbage_is_told_after_the_answer_to_the_request_before_it(
    watcher: Watcher, watched: int, garbage: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1"))
    await watcher.begun()
    writer.write(garbage)
    await writer.drain()
    watcher.may_answer.set()
    with contextlib.suppress(ConnectionError):  # it was still being written
        first, _, second = (await soon(reader.read())).partition(b"hi")
        assert first.startswith(b"HTTP/1.1 200")
        assert second.startswith(b"HTTP/1.1 400")
    writer.close()


async def test_a_body_that_is_no_http_is_told_so(watched: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(CHUNKED_HEAD + b"no number\r\n")
    assert (await soon(reader.read())).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_nothing_else_is_said_in_the_middle_of_an_answer() -> None:
    """A body that breaks off while it is answered."""
    may_end = asyncio.Event()

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"ha", "more_body": True})
        await may_end.wait()

    async with serving(config_of(answering)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED_HEAD)
        await soon(reader.readuntil(b"ha"))
        writer.write(b"no number\r\n")
        assert await soon(reader.read()) == b""
        may_end.set()
        writer.close()


# --- pipelining


async def test_uvicorn_is_given_one_request_after_the_other(watcher: Watcher, watched: int) -> None:
    """By itself it would queue any number of them: 20 MB of short ones made 2.5 GB."""
    reader, writer = await asyncio.open_connection("127.0.0.1", watched)
    writer.write(post(b"/1") * 1000)
    await watcher.begun()
    watcher.may_answer.set()
    for _ in range(1000):
        head = await soon(reader.readuntil(b"\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(2) == b"hi"
    assert watcher.most_at_once == 1
    writer.close()


async def test_who_asks_without_end_and_reads_no_answer_is_not_read_either(
    watcher: Watcher, watched: int
) -> None:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", watched))
    _, writer = await asyncio.open_connection(sock=connection)
    writer.transport.set_write_buffer_limits(0)
    sent = 0
    with contextlib.suppress(asyncio.TimeoutError):
        while sent < 10_000 * MAX_AHEAD_BYTES:
            writer.write(post(b"/1") * 1000)
            sent += len(post(b"/1")) * 1000
            await asyncio.wait_for(writer.drain(), 1)
    assert sent < 1000 * MAX_AHEAD_BYTES, "what two sockets' buffers take, and a little"
    writer.transport.abort()


# --- offers of another protocol

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
async def test_an_offer_of_http2_is_not_heard_and_the_body_served(
    name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Java's HttpClient makes it with every first request; what looks like one in a body stays."""
    offer = UPGRADE.replace(b"Upgrade:", name + b":")
    body = b"a\r\nUpgrade: h2c\r\n\r\nb"
    head = b"POST /1 HTTP/1.1\r\nHost: h\r\n" + offer
    sized = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    said = sized + chunked + sized
    async with serving(config_of(echo)) as port:
        for pieces in ([said], [said[i : i + 7] for i in range(0, len(said), 7)]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            for _ in range(3):
                await soon(reader.readuntil(b"\r\n\r\n"))
                assert await soon(reader.readexactly(len(body))) == body
            writer.close()
    assert caplog.records == [r for r in caplog.records if "upgrade" not in r.message.lower()]


class Accepted(ProxyProtocol):
    """Shows the server's sockets, and how much has come."""

    sockets: ClassVar[list[Any]] = []
    read_bytes: ClassVar[int] = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sockets.append(transport.get_extra_info("socket"))
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        Accepted.read_bytes += len(data)
        super().data_received(data)

    @classmethod
    def until_all_are_readable(cls) -> None:
        """Without the event loop."""
        for accepted in cls.sockets:
            with selectors.DefaultSelector() as selector:
                selector.register(accepted, selectors.EVENT_READ)
                assert selector.select(60)
        cls.sockets.clear()


@pytest.mark.parametrize("split", [None, 10, -1], ids=["whole", "half heads", "half bodies"])
async def test_a_crowd_begins_some_in_each_turn_and_others_in_between(split: int | None) -> None:
    """All of it is there before the event loop looks. Who has left until its turn comes is not asked for."""
    begun: list[tuple[int, str]] = []
    failures: list[Any] = []
    turn = 0

    async def note(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        begun.append((turn, scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def count() -> None:
        nonlocal turn
        turn += 1
        counting[0] = asyncio.get_running_loop().call_soon(count)

    async with serving(config_of(note, Accepted, {"/same", "/other"})) as port:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, failure: failures.append(failure))
        counting = [asyncio.get_running_loop().call_soon(count)]
        Accepted.read_bytes = 0
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(41)]
        await until(lambda: len(Accepted.sockets) == len(crowd))
        requests = [post(path, b"what") for path in [b"/same"] * 31 + [b"/other"] * 10]
        if split is not None:
            for (_, writer), request in zip(crowd, requests, strict=True):
                writer.write(request[:split])
            await until(lambda: Accepted.read_bytes == sum(len(request[:split]) for request in requests))
            for _ in range(len(crowd)):  # then each had its turn
                await asyncio.sleep(0)
        for (_, writer), request in zip(crowd, requests, strict=True):
            writer.write(request[split:])  # at once: the socket takes it
        Accepted.until_all_are_readable()
        crowd.pop(20)[1].close()
        for reader, _ in crowd:
            head = await soon(reader.readuntil(b"\r\n\r\n"))
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"what" in await soon(reader.readuntil(b"0\r\n\r\n"))
        counting[0].cancel()
        for _, writer in crowd:
            writer.close()
    assert max(Counter(number for number, _ in begun).values()) == TURN_COST // OWN_COST
    assert {path for _, path in begun[:12]} == {"/same", "/other"}
    assert len(begun) == len(crowd)
    assert failures == []
