"""HTTP as uvicorn reads it, with an end to headers that never end and errors in the API's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from itertools import chain
from typing import cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.core.errors import BadRequest

MAX_HEAD_BYTES = 65536
"""Twice what `app/api/security.py` answers politely; its own limit needs a head that is complete."""

CHECKED = "router.checked"
"""In a message: its headers are in lower case, hold nothing that could end them, and keep the connection."""


class RouterProtocol(HttpToolsProtocol):
    """The parser keeps whatever comes until a head is complete: a client could fill the memory."""

    _head_bytes: int | None = None

    def watch(self, gone: Callable[[], None]) -> Callable[[], None]:
        """`gone` is called when the client's connection is lost, until the returned function is called.

        ASGI's way is a task that waits for `receive`; it costs as much as a tenth of a short request.
        """
        if self.transport.is_closing():
            gone()
            return _nothing
        self.flow.resume_reading()  # a connection that nobody reads is not seen to end
        self._watchers.add(gone)
        return lambda: self._watchers.discard(gone)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._watchers: set[Callable[[], None]] = set()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for gone in tuple(self._watchers):
            gone()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_bytes is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["router.connection"] = self  # type: ignore[typeddict-unknown-key]
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()
        self.cycle.__class__ = _Cycle  # uvicorn makes it, and offers no other way to make another one

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP never reaches the application. `msg` is uvicorn's or our own."""
        body = json.dumps(BadRequest(msg).body()).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            "x-content-type-options: nosniff\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _nothing() -> None:
    """There is nothing to end."""


class _Cycle(RequestResponseCycle):
    """uvicorn's way of answering, with a shorter one for what the relay sends: llama-server's headers have
    been through a parser, and an event needs no list of its parts."""

    async def send(self, message: ASGISendEvent) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started and CHECKED in message:
            self._send_head(message["status"], message["headers"])  # type: ignore[typeddict-item]
        elif (
            self.chunked_encoding and message.get("more_body") and (chunk := cast(bytes, message.get("body")))
        ):
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        else:
            await super().send(message)

    def _send_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.response_started, self.waiting_for_100_continue = True, False
        has_body = self.scope["method"] != "HEAD" and status not in (204, 304)
        parts = [STATUS_LINE[status]]
        for name, value in chain(self.default_headers, headers):
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length" and has_body:
                self.expected_content_length, self.chunked_encoding = int(value), False
        if self.chunked_encoding is None and has_body:
            self.chunked_encoding = True
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self.transport.write(b"".join(parts))
