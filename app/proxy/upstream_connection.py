"""One TCP connection to a llama-server: a bare transport, callbacks only.

A general client spends more on one exchange than all the rest of the router together (measured: 340 us with
aiohttp, 70 with this one). It can be small because the other end is always llama-server on this machine: no
TLS, no names to look up, no redirects, cookies, encodings or proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from app.proxy.answer_reader import AnswerReader, KnownAnswerHeads, NotHttp, Stage
from app.proxy.catch_bugs import catch_bugs
from app.proxy.exchange_interfaces import Listener, UpstreamGone
from app.proxy.request_body import Data, Spool
from app.proxy.request_record import RoutedRequest

PIECE_BYTES = 262144
"""Of a body that is larger, so much is given to the transport in one turn of the event loop, and no more
until that is taken. Else all of it would be copied there, and sent in one long turn."""


_NOTHING = memoryview(b"")


class UpstreamConnection(asyncio.Protocol):
    """Lives for one answer, or from one to the next. `on_idle` takes it back, `on_lost` hears of its end."""

    def __init__(
        self,
        port: int,
        known: KnownAnswerHeads,
        on_idle: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection], None],
    ) -> None:
        self.port, self.idle_since = port, 0.0
        self._on_idle, self._on_lost = on_idle, on_lost
        self._listener: Listener | None = None
        self._transport: asyncio.Transport
        self._reader = AnswerReader(known)
        self._may_keep = self._has_heard = False
        self._unsent: memoryview | Spool = _NOTHING
        self._sent = 0
        self._is_full = False

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    # --- one request after the other

    def ask(
        self, request: RoutedRequest, api_key: str, body: Data, listener: Listener, *, is_fresh: bool
    ) -> None:
        """`is_fresh`: opened for this request, so that its loss is never `stale`."""
        head = _head(request, self.port, api_key, len(body))
        has_body = request.method != "HEAD"
        self._listener, self._has_heard = listener, is_fresh
        self._may_keep = request.keep_alive and has_body
        self._reader.expect(has_body=has_body)
        if not isinstance(body, Spool) and len(body) <= PIECE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent, self._sent = body if isinstance(body, Spool) else memoryview(body), 0
            self._send_piece()

    def release(self) -> None:
        """The listener wants no more. An answer that is not complete ends its connection, which is what makes
        llama-server stop generating."""
        self._listener = None
        if self._may_keep and self._is_at_rest:
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
        """All of the answer has come, and all of the request has been sent: a server that answers before it
        has read a request may take the rest of its body for the next one."""
        reader, transport = self._reader, self._transport
        is_complete = reader.stage is Stage.COMPLETE and not reader.has_excess
        return is_complete and not (
            self._unsent or transport.is_closing() or transport.get_write_buffer_size()
        )

    def _send_piece(self) -> None:
        if self.is_closing or self._is_full or not self._unsent:
            return
        piece = self._unsent[self._sent : self._sent + PIECE_BYTES]
        self._sent += len(piece)
        if self._sent >= len(self._unsent):
            self._unsent = _NOTHING
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

    @catch_bugs
    def data_received(self, data: bytes) -> None:
        listener, reader = self._listener, self._reader
        if listener is None:  # nothing was asked
            self.abort()
            return
        self._has_heard = True
        try:
            head, body = reader.feed(data)
        except NotHttp as error:
            self._listener = None
            self.abort()
            listener.broken(UpstreamGone(str(error)))
            return
        if head is not None:
            # llama-server closes after every chunked answer, although it promises to keep the connection
            self._may_keep = self._may_keep and head.keeps_connection and reader.length is not None
            listener.head(head, reader.length)
        is_last = reader.stage is Stage.COMPLETE
        if not (body or is_last) or self._listener is not listener:  # it may have released the connection
            return
        if not listener.body(body, is_last) and not is_last and not self.is_closing:
            self._transport.pause_reading()

    def bug(self, bug: Exception) -> None:
        """Its listener tells it: a lost connection would be taken for the end of llama-server."""
        listener, self._listener = self._listener, None
        self.abort()
        if listener is not None:
            listener.bug(bug)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unsent = _NOTHING
        listener, self._listener = self._listener, None
        self._on_lost(self)
        if listener is None:
            return
        if self._reader.stage is Stage.UNTIL_CLOSE and exc is None:
            listener.body(b"", True)
        else:
            listener.broken(UpstreamGone(str(exc or "closed by llama-server"), stale=not self._has_heard))


def _head(request: RoutedRequest, port: int, api_key: str, length: int) -> bytes:
    """With the key of this process."""
    has_body = length or request.method not in ("GET", "HEAD", "OPTIONS", "DELETE")
    framing = f"content-length: {length}\r\n" if has_body else ""
    if not request.keep_alive:
        framing += "connection: close\r\n"
    start = f"{request.method} {request.path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
    end = f"authorization: Bearer {api_key}\r\n{framing}\r\n"
    return b"%b%b%b" % (start.encode("latin-1"), request.headers, end.encode())
