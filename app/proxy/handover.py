"""A connection that an unmodified uvicorn answers on, behind a protocol that stays in front of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import httptools

from app.domain.alarm import LATE_S, READ_FIRST_S
from app.domain.errors import BadRequest
from app.proxy.request_head import RequestHead
from app.proxy.request_reader import NO_HTTP

_CHUNKED = b"transfer-encoding: chunked\r\n"
_CLOSE = b"connection: close\r\n"


class WrittenAnswer:
    """Reads what uvicorn writes for where an answer ends: it tells nobody.

    And it sends chunks to clients of HTTP/1.0 too, who do not know them (RFC 9112, 6.1): for them they are
    taken out.
    """

    def __init__(self) -> None:
        self.is_open = self.has_begun = False
        self.ended_at: float | None = None
        self._is_head_only = self._knows_chunks = False
        self._has_head = self._in_chunks = False
        self._body: list[bytes] = []
        self._parser: httptools.HttpResponseParser | None = None

    def expect(self, method: str, version: str) -> None:
        self.is_open, self.has_begun, self._is_head_only = True, False, method == "HEAD"
        self._knows_chunks, self._has_head, self._in_chunks = version == "1.1", False, False
        self.ended_at = None
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        """What the client is to get of it."""
        self.has_begun, is_head = True, not self._has_head
        if self._parser is not None:
            with contextlib.suppress(httptools.HttpParserError):
                self._parser.feed_data(data)
        if self._knows_chunks:
            return data
        if is_head and not self._has_head:
            return b""  # no final one: HTTP/1.0 knows no others (RFC 9110, 15.2)
        if is_head:  # uvicorn writes it by itself
            self._in_chunks = _CHUNKED in data
            return data.replace(_CHUNKED, b"" if _CLOSE in data else _CLOSE)  # older uvicorns close unsaid
        body, self._body = self._body, []
        return b"".join(body) if self._in_chunks else data

    def close(self) -> None:
        self._parser = None  # each holds the other

    def on_headers_complete(self) -> None:
        self._has_head = self._parser is not None and self._parser.get_status_code() >= 200
        if self._is_head_only:  # its length is that of a body that does not come
            self._end()

    def on_body(self, body: bytes) -> None:
        if self._in_chunks:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._has_head:  # else the real one follows
            self._end()

    def _end(self) -> None:
        self.is_open, self.ended_at = False, asyncio.get_running_loop().time()


class FrontedTransport(asyncio.Transport):
    """The transport that uvicorn gets: it writes to the real one, and whether to read is decided in front."""

    def __init__(
        self,
        real: asyncio.Transport,
        answer: WrittenAnswer,
        on_change: Callable[[], None],
        keep_alive_s: float,
    ) -> None:
        """`on_change`: more can be dealt with. `keep_alive_s`: uvicorn's, between two requests."""
        super().__init__()
        self._keep_alive_s = keep_alive_s
        self.is_paused = False
        """uvicorn wants nothing more for now."""
        self.is_body_to_come = False
        """Some of it, of the request that is answered."""
        self._closes = False
        self._real, self._answer, self._on_change = real, answer, on_change

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._real.write(self._answer.feed(bytes(data)))
        if not self._answer.is_open:
            self._on_change()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """A timer of uvicorn's that is late rings after a pause of this program, perhaps before a request is
        read that came meanwhile. And a client that still sends is not reset: it may lose its answer."""
        if self.is_body_to_come and not self._closes:
            self._closes = True
            self.resume_reading()
            return
        loop, ended_at = asyncio.get_running_loop(), self._answer.ended_at
        if ended_at is not None and loop.time() - ended_at > self._keep_alive_s + LATE_S:
            loop.call_later(READ_FIRST_S, self._close_idle)
        else:
            self._real.close()

    def _close_idle(self) -> None:
        if not self._answer.is_open:
            self._real.close()

    def abort(self) -> None:
        self._real.abort()

    def is_closing(self) -> bool:
        return self._closes or self._real.is_closing()

    def body_ended(self) -> None:
        self.is_body_to_come = False
        if self._closes:
            self._real.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._real.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self.is_paused = not self._closes

    def resume_reading(self) -> None:
        self.is_paused = False
        self._on_change()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._real.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._real.get_write_buffer_size()


class Handover:
    """uvicorn's side of a connection. It is given bytes that have been read once, so that they are HTTP, and
    one request at a time: it would queue any number, and tell only the last one that its client has left."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, on_change: Callable[[], None]) -> None:
        """`protocol`: an `HttpToolsProtocol` of any version."""
        self._protocol, self._answer = protocol, WrittenAnswer()
        self._transport = FrontedTransport(transport, self._answer, on_change, protocol.timeout_keep_alive)
        self._given = 0
        protocol.connection_made(self._transport)

    @property
    def takes_head(self) -> bool:
        return not (self._answer.is_open or self._transport.is_paused)

    @property
    def takes_body(self) -> bool:
        return not self._transport.is_paused

    @property
    def held_bytes(self) -> int:
        """Of a body, by uvicorn: the piece with which it had enough."""
        return self._given if self._transport.is_paused else 0

    @property
    def owes_answer(self) -> bool:
        """To the request that it was given last, of which not a byte has been sent."""
        return self._answer.is_open and not self._answer.has_begun

    def head(self, head: RequestHead) -> None:
        """Raises `BadRequest` for a target that uvicorn would not understand."""
        try:
            httptools.parse_url(head.lines.target)
        except httptools.HttpParserInvalidURLError:
            raise BadRequest(NO_HTTP) from None
        self._answer.expect(head.method, head.lines.version)
        self._transport.is_body_to_come = head.length != 0
        self._protocol.data_received(head.raw)

    def body(self, raw: bytes, *, last: bool) -> None:
        self._given = len(raw)
        self._protocol.data_received(raw)
        if last:
            self._transport.body_ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._answer.close()
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
