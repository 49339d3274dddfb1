"""The router on a socket, as `app/uvicorn_server.py` serves it, and a client that sends what none would.

Tests start servers by `start_server` only: it is the one place that knows how.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import httpx
import uvicorn

from app.main import RouterApp, drain
from app.uvicorn_server import server_config

T = TypeVar("T")

Pair = tuple[bytes, bytes]

STEP_S, STEPS = 0.5, 120


async def soon(awaitable: Awaitable[T], steps: int = STEPS) -> T:
    """What hangs is a failure of this test, not of the run.

    Counted in steps: a machine that stood still itself, perhaps for longer than all of them, has used up one.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        for _ in range(steps):
            done, _waits = await asyncio.wait([task], timeout=STEP_S)
            if done:
                return task.result()
        raise asyncio.TimeoutError(f"not done within {STEP_S * steps:.0f} s")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


# --- the server


async def start_server(app: RouterApp, **settings: Any) -> uvicorn.Server:
    """uvicorn in front of it as in production, on a port that the system picks.

    `settings` are uvicorn's, where a test needs another one than production has.
    """
    config = server_config(app, "127.0.0.1", 0)
    for name, value in settings.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    return await started(uvicorn.Server(config))


Server = TypeVar("Server", bound=uvicorn.Server)


async def started(server: Server) -> Server:
    """It serves; its own loop does not run."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    await server.on_tick(0)  # the Date
    return server


async def stop_server(app: RouterApp, server: uvicorn.Server) -> None:
    """As `RouterServer` does it."""
    await drain(app)
    await server.shutdown()


@asynccontextmanager
async def serving(app: RouterApp, **settings: Any) -> AsyncIterator[int]:
    """A server for this application; its port."""
    server = await start_server(app, **settings)
    try:
        yield port_of(server)
    finally:
        await stop_server(app, server)


def port_of(server: uvicorn.Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


# --- a client


@dataclass(frozen=True)
class Reply:
    """One answer, as its client sees it; names of headers are in lower case."""

    line: bytes
    headers: list[Pair]
    body: bytes = field(repr=False)

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    @property
    def code(self) -> str | None:
        """Of an error in the API's shape."""
        code: str | None = json.loads(self.body)["error"]["code"]
        return code

    def __getitem__(self, name: bytes) -> bytes:
        """Of a header that is there once."""
        (value,) = (v for n, v in self.headers if n == name)
        return value

    def __contains__(self, name: bytes) -> bool:
        return any(n == name for n, _ in self.headers)

    @property
    def is_stream(self) -> bool:
        return any(n == b"content-type" and b"event-stream" in v for n, v in self.headers)

    @property
    def is_last(self) -> bool:
        """The server closes the connection after it."""
        return (b"connection", b"close") in self.headers


class Client:
    """One connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, buffer: int | None = None) -> Client:
        """`buffer`: what the kernel takes for one that does not read."""
        if buffer is None:
            return cls(*await asyncio.open_connection("127.0.0.1", port))
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=connection, limit=buffer))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, *, to: str = "POST") -> Reply:
        """The next answer, whole."""
        return await self.rest_of(await self.head(), to=to)

    async def head(self) -> Reply:
        """Of the next answer; a `100 Continue` is none."""
        found = await self._head()
        return await self._head() if found.status == 100 else found

    async def rest_of(self, head: Reply, *, to: str) -> Reply:
        return Reply(head.line, head.headers, await self._body(head, to))

    async def _head(self) -> Reply:
        line, *lines = (await soon(self._reader.readuntil(b"\r\n\r\n"))).split(b"\r\n")[:-2]
        pairs = [line.split(b": ", 1) for line in lines]
        return Reply(line, [(name.lower(), value) for name, value in pairs], b"")

    async def _body(self, head: Reply, method: str) -> bytes:
        headers = dict(head.headers)
        if method == "HEAD" or head.status in (204, 304):
            return b""
        if b"content-length" in headers:
            return await soon(self._reader.readexactly(int(headers[b"content-length"])))
        parts = []
        while size := int(await soon(self._reader.readuntil(b"\r\n")), 16):
            parts.append((await soon(self._reader.readexactly(size + 2)))[:-2])
        await soon(self._reader.readexactly(2))
        return b"".join(parts)

    async def ask(self, data: bytes, *, method: str = "POST") -> Reply:
        self.say(data)
        return await self.reply(to=method)

    async def line(self) -> bytes:
        """The next one, of whatever."""
        return await soon(self._reader.readuntil(b"\n"))

    async def rest(self) -> bytes:
        """What comes until the router closes the connection."""
        try:
            return await soon(self._reader.read())
        except ConnectionError:
            return b""

    def leave(self) -> None:
        self.writer.close()


# --- two ways to the same application

FRAMING = (b"content-length", b"transfer-encoding")
BASE_URL = "http://127.0.0.1:8000"
"""What clients believe that they speak to, whatever the port is: cookies and origins are compared with it."""


class Way(Protocol):
    """How requests get to it. Of a stream of events the answer is its head, and then the client leaves."""

    app: RouterApp

    async def ask(self, method: str, target: str, headers: Sequence[Pair], body: Sequence[bytes]) -> Reply:
        """`body`: in these pieces. Framing is left to the headers, where there is any."""
        ...

    def client(self, **more: Any) -> Browser: ...


class Browser(httpx.AsyncClient):
    """httpx on one of the ways."""

    def __init__(self, way: Way, transport: httpx.AsyncBaseTransport, **more: Any) -> None:
        super().__init__(transport=transport, base_url=BASE_URL, **more)
        self.way = way


class InProcess:
    """ASGI by hand: headers that no server would let through reach the application too."""

    def __init__(self, app: RouterApp) -> None:
        self.app = app

    async def ask(self, method: str, target: str, headers: Sequence[Pair], body: Sequence[bytes]) -> Reply:
        left, done = [*body] or [b""], asyncio.Event()
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def receive() -> dict[str, Any]:
            if left:
                piece = left.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(left)}
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                if _reply(start, b"").is_stream:
                    done.set()  # has begun: we leave
            parts.append(message.get("body", b""))

        await soon(self.app(_scope(method, target, headers), receive, send))
        return _reply(start, b"".join(parts))

    def client(self, **more: Any) -> Browser:
        return Browser(self, httpx.ASGITransport(self.app, raise_app_exceptions=False), **more)


class OverSocket:
    """Bytes to the production server. Connections are used again: an answer to another request than ours
    would be found."""

    def __init__(self, app: RouterApp, port: int) -> None:
        self.app, self.port = app, port
        self._idle: list[Client] = []

    async def ask(self, method: str, target: str, headers: Sequence[Pair], body: Sequence[bytes]) -> Reply:
        true = (b"content-length", b"%d" % sum(map(len, body)))
        framing = [header for header in headers if header[0].lower() in FRAMING]
        if any(body) and not framing:
            headers = [*headers, true]
        is_odd = framing not in ([], [true]) or any({*value} & {*b"\r\n"} for _, value in headers)
        head = [f"{method} {target} HTTP/1.1".encode(errors="replace")]
        head += [b"%b: %b" % header for header in headers]
        client = self._idle.pop() if self._idle else await Client.connect(self.port)
        client.say(b"\r\n".join([*head, b"", b""]))
        for piece in body:
            client.say(piece)
        if is_odd:
            client.say(b"\r\n" * 8000)  # completes what is announced too long; before a request it is nothing
        reply = await client.head()
        if not reply.is_stream:
            reply = await client.rest_of(reply, to=method)
        if is_odd or reply.is_last or reply.is_stream or method == "CONNECT":
            client.leave()
        else:
            self._idle.append(client)
        return reply

    def client(self, **more: Any) -> Browser:
        return Browser(self, _Transport(self), **more)

    def close(self) -> None:
        for client in self._idle:
            client.leave()
        self._idle.clear()


class _Transport(httpx.AsyncBaseTransport):
    """httpx over `OverSocket`: nothing is corrected on the way."""

    def __init__(self, way: OverSocket) -> None:
        self._way = way

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        pieces = [piece async for piece in request.stream]  # type: ignore[union-attr]
        if (b"transfer-encoding", b"chunked") in headers:
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
        target = request.url.raw_path.decode("ascii")
        reply = await self._way.ask(request.method, target, headers, pieces)
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)


def _scope(method: str, target: str, headers: Sequence[Pair]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(errors="replace"),
        "query_string": query.encode(errors="replace"),
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


def _reply(start: dict[str, Any], body: bytes) -> Reply:
    return Reply(b"HTTP/1.1 %d" % start["status"], [(n.lower(), v) for n, v in start["headers"]], body)


@asynccontextmanager
async def reached_by(way: str, app: RouterApp, **settings: Any) -> AsyncIterator[Way]:
    """The application, started, on one of `WAYS`."""
    if way == "asgi":
        async with app.router.lifespan_context(app):
            yield InProcess(app)
        return
    async with serving(app, **settings) as port:
        found = OverSocket(app, port)
        try:
            yield found
        finally:
            found.close()
