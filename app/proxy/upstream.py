"""The data path's HTTP client towards llama-server: httptools on a bare transport.

A general client spends more on one exchange than all the rest of the router together (measured: 340 us with
aiohttp, 70 with this one). It can be small because the other end is always llama-server on this machine: no
TLS, no names to look up, no redirects, cookies, encodings or proxies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from app.domain.errors import Overloaded
from app.llama.os_process import NO_FILES_LEFT, out_of_files

IDLE_CONNECTION_S = 2.0
"""llama-server drops an idle connection after 5 s: ours must be gone well before."""

MAX_HEAD_BYTES = 65536
READ_AHEAD_BYTES = 65536
"""What may wait here for a slow client before llama-server's end of the connection is left to fill up."""


class UpstreamGone(Exception):
    """The connection failed: the process died, or was stopped."""


class Request(NamedTuple):
    """`target` is the path with its query, encoded; `headers` are whole lines."""

    method: str
    target: str
    headers: bytes
    body: bytes
    fresh: bool
    """It needs a connection of its own."""


class Upstream:
    """A stream gets a connection of its own, because llama-server closes it after every stream although it
    promises to keep it alive; short answers share a few kept ones."""

    def __init__(self) -> None:
        self._idle: dict[int, list[_Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.closed = False

    async def send(self, request: Request, port: int, asked: Answer | None = None) -> Answer:
        """The answer, its head complete. The caller closes it. Raises `UpstreamGone`, and `Overloaded` where
        the router has no connections left.

        `asked` is what `ask` has returned for the same request, if it was asked already.
        """
        answer = asked or self.ask(request, port)
        if answer is not None:
            try:
                await answer.head()
                return answer
            except UpstreamGone:  # a kept connection may have been closed under our hands
                answer.close()
                if not answer.untouched:
                    raise
            except BaseException:
                answer.close()
                raise
        answer = (await self._connect(port)).ask(request)
        try:
            await answer.head()
        except BaseException:
            answer.close()
            raise
        return answer

    def ask(self, request: Request, port: int) -> Answer | None:
        """The answer to come, on a kept connection. None, and nothing asked, where there is none for it."""
        if request.fresh or request.method != "POST" or (kept := self._take(port)) is None:
            return None
        return kept.ask(request)

    async def _connect(self, port: int) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self, port), "127.0.0.1", port)
        except OSError as error:
            if out_of_files(error):
                raise Overloaded(NO_FILES_LEFT, retry_after_s=1) from error
            raise UpstreamGone(str(error)) from error
        return connection

    def _take(self, port: int) -> _Connection | None:
        idle = self._idle.get(port, [])
        while idle:
            connection = idle.pop()
            if not connection.is_closing:
                return connection
        return None

    def keep(self, connection: _Connection) -> None:
        """For the next short request to this port, if it comes soon."""
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.port, []).append(connection)
        if self._sweeper is None:
            self._sweep_in(IDLE_CONNECTION_S)

    def forget(self, connection: _Connection) -> None:
        """It was closed from the other end."""
        idle = self._idle.get(connection.port, [])
        if connection in idle:
            idle.remove(connection)

    def _sweep_in(self, delay_s: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        limit = time.monotonic() - IDLE_CONNECTION_S
        for port, idle in tuple(self._idle.items()):
            for connection in [c for c in idle if c.idle_since <= limit]:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[port]
        if self._idle:
            self._sweep_in(IDLE_CONNECTION_S / 4)

    async def close(self) -> None:
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    """One TCP connection; it lives for one answer, or from one to the next."""

    idle_since = 0.0

    def __init__(self, owner: Upstream, port: int) -> None:
        self.port = port
        self._owner = owner
        self._answer: Answer | None = None
        self._transport: asyncio.Transport

    def ask(self, request: Request) -> Answer:
        self._answer = answer = Answer(self, single=request.fresh, is_head=request.method == "HEAD")
        head, body = _head(request, self.port), request.body
        if len(body) <= READ_AHEAD_BYTES:
            self._transport.write(head + body)
        else:  # not copied
            self._transport.write(head)
            self._transport.write(body)
        return answer

    def release(self, *, keep: bool) -> None:
        """The answer is done with."""
        self._answer = None
        if keep and not self._owner.closed and self._is_at_rest:
            self._owner.keep(self)
        else:
            self.abort()

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def _is_at_rest(self) -> bool:
        """Whoever answers before it has read a request may take the rest of its body for the next one."""
        return not self.is_closing and not self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._transport.abort()

    def pause(self) -> None:
        if not self.is_closing:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self.is_closing:
            self._transport.resume_reading()

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is not None:
            self._answer.feed(data)
        else:  # nothing was asked
            self._owner.forget(self)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.lost(exc)
        else:
            self._owner.forget(self)


class Answer:
    """One response: its head, then its body as it comes. Close it; an unfinished one ends its connection,
    which is what makes llama-server stop generating."""

    def __init__(self, connection: _Connection, *, single: bool, is_head: bool) -> None:
        """`single`: nothing is asked after it."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.content_type = b""
        self.untouched = True
        """Not a byte has come."""
        self.ended = False
        """All of the body has come; some of it may not have been read."""
        self.on_news: Callable[[], None] | None = None
        """Called for whatever comes, the connection's loss too, for whoever has no task to wait in."""
        self._connection: _Connection | None = connection
        self._parser = httptools.HttpResponseParser(self)
        self._may_keep = not single and not is_head
        self._is_head_only = is_head
        self._head_bytes: int | None = 0
        self._until_eof = True
        self._keep = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._error = ""
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    async def head(self) -> None:
        """Until status and headers are known. Raises `UpstreamGone`, also for what broke off since."""
        while self._head_bytes is not None or (self._error and not self.ended):
            await self._more()

    @property
    def needs_reader(self) -> bool:
        """It broke off, or is not one that comes at once and is short."""
        return self._paused or (self._until_eof and self._head_bytes is None) or bool(self._error)

    @property
    def has_some(self) -> bool:
        """Some of the body waits here."""
        return bool(self._chunks)

    async def read(self, sink: Callable[[bytes], bool] | None = None) -> bytes:
        """What has come since the last call, at least a byte; nothing at the end. Raises `UpstreamGone`.

        While this waits, `sink` is given what comes, in the very callback in which it comes, until it returns
        False: that piece, and the last one in any case, is what this returns. To wake a task costs a third
        of an event.
        """
        chunks = self._chunks
        while not chunks:
            if self.ended:
                return b""
            self._sink = sink
            try:
                await self._more()
            finally:
                self._sink = None
        return self.take()

    def take(self) -> bytes:
        """What waits here, which may be nothing."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._size = 0
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume()
        return data

    def cut(self, why: str) -> None:
        """Whoever waits for it hears of an end that cannot be asked again."""
        self.untouched = False
        self._fail(why)
        self._wake()

    def close(self) -> None:
        """Safe to call twice."""
        if self._connection is not None:
            # paused: nothing more would be heard on it
            self._connection.release(keep=self._keep and self.ended and not self._paused)
            self._connection = None
            del self._parser  # each holds the other: they would wait for the garbage collector

    async def _more(self) -> None:
        if self._error:
            raise UpstreamGone(self._error)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # --- the connection's side

    def feed(self, data: bytes) -> None:
        self.untouched = False
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the answer is not HTTP: {error!r}")
        if self._head_bytes is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("the answer's headers do not end")
        if self._sink is None or not self._pour():
            self._wake()

    def _pour(self) -> bool:
        """False where the reader has to be woken."""
        sink, chunks = self._sink, self._chunks
        if sink is None or self.ended or self._error or self._paused:
            return False
        if chunks:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if not sink(data):
                return False
            chunks.clear()
            self._size = 0
        return True

    def lost(self, error: Exception | None) -> None:
        if self._head_bytes is None and self._until_eof and error is None and not self._error:
            self.ended = True
        elif not self.ended:
            self._error = self._error or str(error or "closed by llama-server")
        self._keep = False
        self._wake()

    def _fail(self, error: str) -> None:
        self._error = self._error or error
        self._keep = False
        if self._connection is not None:
            self._connection.abort()

    def _wake(self) -> None:
        self._sink = None
        if self.on_news is not None:
            self.on_news()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_bytes is None:  # a trailer
            return
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-type":
            self.content_type = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._until_eof = False
            self._keep = name == b"content-length"

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # the real answer follows
            self.headers.clear()
            self.content_type, self._until_eof, self._keep = b"", True, False
            return
        self._head_bytes = None
        self._keep = self._keep and self._may_keep and self._parser.should_keep_alive()
        if self._is_head_only:  # its Content-Length tells of a body that does not come
            self.ended = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._size += len(body)
        if self._size > READ_AHEAD_BYTES and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()

    def on_message_begin(self) -> None:
        if self.ended:  # not a byte of it may get into this answer: the parser stops here
            raise ValueError("more than was asked for")

    def on_message_complete(self) -> None:
        self.ended = self._head_bytes is None


def _head(request: Request, port: int) -> bytes:
    method, target, headers, body, fresh = request
    start = f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n".encode("latin-1")
    has_body = body or method not in ("GET", "HEAD", "OPTIONS", "DELETE")
    length = b"content-length: %d\r\n" % len(body) if has_body else b""
    return b"%b%b%b%b" % (start, headers, length, b"connection: close\r\n\r\n" if fresh else b"\r\n")
