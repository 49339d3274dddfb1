"""One TCP connection to a llama-server: httptools on a bare transport, callbacks only.

A general client spends more on one exchange than all the rest of the router together (measured: 340 us with
aiohttp, 70 with this one). It can be small because the other end is always llama-server on this machine: no
TLS, no names to look up, no redirects, cookies, encodings or proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import cast

import httptools

from app.proxy.headers import Headers
from app.proxy.seams import Listener, UpstreamGone, UpstreamRequest

MAX_HEAD_BYTES = 65536
PIECE_BYTES = 262144
"""Of a body that is larger, so much is given to the transport in one turn of the event loop, and no more
until that is taken. Else all of it would be copied there, and sent in one long turn."""


class Stage(Enum):
    IDLE = "nothing has been asked"
    ASKED = "not a byte has come"
    IN_HEAD = "its head is not complete"
    IN_BODY = "its body has an announced end"
    UNTIL_CLOSE = "its body ends with the connection"
    COMPLETE = "all of the answer has come"
    FAILED = "what came is no answer"


_NOTHING = memoryview(b"")
_HAS_HEAD = frozenset({Stage.IN_BODY, Stage.UNTIL_CLOSE, Stage.COMPLETE})


class UpstreamConnection(asyncio.Protocol):
    """Lives for one answer, or from one to the next. `on_idle` takes it back, `on_lost` hears of its end."""

    def __init__(
        self,
        port: int,
        on_idle: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection], None],
    ) -> None:
        self.port, self.idle_since = port, 0.0
        self._on_idle, self._on_lost = on_idle, on_lost
        self._listener: Listener | None = None
        self._stage = Stage.IDLE
        self._is_fresh = False
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser | None = None
        self._chunks: list[bytes] = []
        self._unsent = _NOTHING
        self._is_full = False

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    # --- one request after the other

    def ask(self, request: UpstreamRequest, listener: Listener, *, is_fresh: bool) -> None:
        """`is_fresh`: opened for this request, so that its loss is never `stale`."""
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._listener, self._stage, self._is_fresh = listener, Stage.ASKED, is_fresh
        self._may_keep = request.keep_alive and request.method != "HEAD"
        self._chunks = []
        self._has_body = request.method != "HEAD"
        self._begin_answer()
        self._head_bytes, self._error = 0, ""
        head, body = _head(request, self.port), request.body
        if len(body) <= PIECE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._send_piece()

    def release(self) -> None:
        """The listener wants no more. An answer that is not complete ends its connection, which is what makes
        llama-server stop generating."""
        self._listener = None
        if self._stage is Stage.COMPLETE and self._may_keep and self._is_at_rest:
            self._stage = Stage.IDLE
            self._on_idle(self)
        else:
            self.abort()

    def resume(self) -> None:
        if not self.is_closing:
            self._transport.resume_reading()

    def abort(self) -> None:
        self._transport.abort()

    @property
    def _is_at_rest(self) -> bool:
        """All of the request has been sent. A server that answers before it has read a request may take the
        rest of its body for the next one."""
        return not (self.is_closing or self._unsent or self._transport.get_write_buffer_size())

    def _send_piece(self) -> None:
        if self.is_closing or self._is_full or not self._unsent:
            return
        piece, self._unsent = self._unsent[:PIECE_BYTES], self._unsent[PIECE_BYTES:]
        self._transport.write(piece)
        if self._unsent and not self._is_full:
            asyncio.get_running_loop().call_soon(self._send_piece)

    # --- asyncio's side

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._send_piece()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        listener, before = self._listener, self._stage
        if listener is None or self._parser is None:  # nothing was asked
            self.abort()
            return
        if before is Stage.ASKED:
            self._stage = Stage.IN_HEAD
        self._parse(data)
        stage = self._stage
        if stage is Stage.IN_HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail("the answer's headers do not end")
        elif stage is not Stage.FAILED:
            if before not in _HAS_HEAD:
                listener.head(self.status, self.headers, self._length)
            self._deliver(listener, last=stage is Stage.COMPLETE)
        if self._stage is Stage.FAILED and self._listener is listener:
            self._listener = None
            self.abort()
            listener.broken(UpstreamGone(self._error))

    def _deliver(self, listener: Listener, *, last: bool) -> None:
        """The listener may release the connection meanwhile, and the next one ask on it."""
        chunks, self._chunks = self._chunks, []
        if self._listener is not listener or not (chunks or last):
            return
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if not listener.body(data, last) and not last and not self.is_closing:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser = None  # each holds the other: they would wait for the garbage collector
        self._unsent = _NOTHING
        listener, self._listener = self._listener, None
        self._on_lost(self)
        if listener is None:
            return
        if self._stage is Stage.UNTIL_CLOSE and exc is None:
            self._stage = Stage.COMPLETE
            listener.body(b"", True)
        else:
            stale = self._stage is Stage.ASKED and not self._is_fresh
            listener.broken(UpstreamGone(str(exc or "closed by llama-server"), stale=stale))

    # --- the parser's side

    def _parse(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._may_keep = False
            if self._stage is not Stage.COMPLETE:  # else it is what follows the answer
                self._fail(f"the answer is not HTTP: {error!r}")

    def _fail(self, error: str) -> None:
        self._stage, self._error = Stage.FAILED, error

    def _begin_answer(self) -> None:
        self.status, self.headers = 0, cast(Headers, [])
        self._length: int | None = None
        self._is_framed = False

    def on_message_begin(self) -> None:
        if self._stage is Stage.COMPLETE:  # not a byte of it may get into this answer: the parser stops here
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is not Stage.IN_HEAD:  # a trailer
            return
        name = name.lower()
        if name == b"content-length":
            self._length, self._is_framed = int(value), True
            return
        self.headers.append((name, value))
        if name == b"transfer-encoding":
            self._is_framed = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = status = self._parser.get_status_code()
        if not 100 <= status < 600:
            raise ValueError(f"no status: {status}")
        if status < 200:  # the real answer follows
            self._begin_answer()
            return
        # llama-server closes after every chunked answer, although it promises to keep the connection
        self._may_keep = self._may_keep and self._length is not None and self._parser.should_keep_alive()
        if not self._has_body:  # its Content-Length is that of a body that does not come
            self._stage = Stage.COMPLETE
        else:
            self._stage = Stage.IN_BODY if self._is_framed else Stage.UNTIL_CLOSE

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._stage is not Stage.IN_HEAD:  # an interim answer
            self._stage = Stage.COMPLETE


def _head(request: UpstreamRequest, port: int) -> bytes:
    method, target, headers, body, keep_alive = request
    start = f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n".encode("latin-1")
    has_body = body or method not in ("GET", "HEAD", "OPTIONS", "DELETE")
    length = b"content-length: %d\r\n" % len(body) if has_body else b""
    return b"%b%b%b%b" % (start, headers, length, b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
