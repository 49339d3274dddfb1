"""HTTP as uvicorn reads it, with an end to headers that never end and errors in the API's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import chain
from typing import Any, cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.core.errors import BadRequest

MAX_HEAD_BYTES = 65536
"""Twice what `app/api/security.py` answers politely; its own limit needs a head that is complete."""

CHECKED = "router.checked"
"""In a message: its headers are in lower case, hold nothing that could end them, keep the connection, and a
Content-Length among them is true. The value is a `Head`."""


class Head(Enum):
    """When it is written."""

    NOW = "now"
    WITH_BODY = "with the first bytes of the body, which follow at once"


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
        self.cycle.__class__ = Cycle  # uvicorn makes it, and offers no other way to make another one
        self.scope["router.cycle"] = self.cycle  # type: ignore[typeddict-unknown-key]

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


class Cycle(RequestResponseCycle):
    """uvicorn's way of answering, with a shorter one for what the relay sends: llama-server's headers have
    been through a parser, an event needs no list of its parts, and uvloop writes at once what comes first:
    a head by itself would wake the client twice."""

    _is_checked = False
    _has_body = True
    _head = b""

    async def send(self, message: ASGISendEvent) -> None:
        if self._is_checked:
            if self.flow.write_paused and not self.disconnected:
                await self.flow.drain()
            if not self.disconnected:
                self._send_body(cast(bytes, message.get("body", b"")), more=bool(message.get("more_body")))
        elif CHECKED in message:
            if not self.disconnected:
                self._is_checked = True
                self._start(message)
        else:
            await super().send(message)

    def write(self, chunk: bytes) -> bool:
        """More of a checked answer, without a task. False, and nothing written, where `send` has to wait."""
        if not self._is_checked or self.flow.write_paused or self.disconnected:
            return False
        self._send_body(chunk, more=True)
        return True

    def _start(self, message: Mapping[str, Any]) -> None:
        status = message["status"]
        self.response_started, self.waiting_for_100_continue = True, False
        self._has_body = self.scope["method"] != "HEAD" and status not in (204, 304)
        self.chunked_encoding = self._has_body
        parts = [STATUS_LINE[status]]
        for name, value in chain(self.default_headers, message["headers"]):
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self.chunked_encoding = False
        if self.chunked_encoding:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(parts)
        if message[CHECKED] is Head.NOW:
            self._write(b"")

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if not self.chunked_encoding:
            self._write(body if self._has_body else b"")
        elif more:
            self._write(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        self.transport.write(data)
