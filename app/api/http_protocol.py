"""HTTP as uvicorn reads it, with a short way for errands, an end to headers that never end, and errors in the
API's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from itertools import chain
from typing import Any, Protocol, cast

import httptools
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from app.access.request_id import own_headers, request_id
from app.api import errors
from app.domain.errors import BadRequest

MAX_HEAD_BYTES = 65536
"""Twice what `app/access/rules.py` answers politely; its own limit needs a head that is complete."""

HEAD_WAITS_S = 0.01
"""llama-server sends a stream's head when it begins with the prompt. A short prompt's first event follows at
once, and reaches a client later that is woken for the head before."""

MAX_PIPELINED = 1000
"""Of one connection. uvicorn reads on after each answer, however many requests wait: 20 MB of short ones made
2.5 GB."""

CHECKED = "router.checked"
"""In a message: its headers are in lower case, hold nothing that could end them, keep the connection, and a
Content-Length among them is true. The value is a `Head`."""

RawHeaders = Iterable[tuple[bytes, bytes]]


class Head(Enum):
    """When it is written."""

    SOON = "with the first bytes of the body, if they come within `HEAD_WAITS_S`"
    WITH_BODY = "with the first bytes of the body, which follow at once"


class Errand(Protocol):
    """A request that is under way without a task."""

    def left(self) -> None:
        """Its client has gone."""

    def hand_over(self) -> None:
        """To a task, by `long_way`."""


class Opening(Protocol):
    """A request whose head was looked at, and that was let in."""

    @property
    def scope(self) -> dict[str, Any]:
        """What is known of it."""
        ...


class Errands(Protocol):
    """Answers requests without a task."""

    def open(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> Opening | None:
        """By the head of a POST. None for what is for a task."""

    def begin(self, opening: Any, body: bytes, connection: RouterProtocol) -> None:
        """Its body is complete. It answers, sets `connection.errand`, or calls `connection.long_way`."""


class RouterProtocol(HttpToolsProtocol):
    """What an errand can answer is kept out of uvicorn's machinery, which makes a task of everything else.

    And the parser keeps whatever comes until a head is complete: a client could fill the memory.
    """

    errand: Errand | None = None
    _opening: Opening | None = None  # the request that comes in, if it is for an errand
    _body: list[bytes]
    _body_bytes = 0
    _keep_alive = True
    _in_head = False
    _head_bytes: int | None = None  # what has come of a head, or of trailers, since the piece they began in
    _piece_bytes = 0
    _rests_since = 0.0

    def __init__(self, *args: Any, errands: Errands | None, **kwargs: Any) -> None:
        """`errands` is None only for an application that has no models."""
        super().__init__(*args, **kwargs)
        self._errands = errands

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

    # --- a request that comes in

    def data_received(self, data: bytes) -> None:
        self._piece_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._failed(error)
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()
        if self._head_bytes is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        if self.errand is not None:  # answers in the order of their requests are uvicorn's business
            self.errand.hand_over()
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._in_head, self._head_bytes = True, -self._piece_bytes
        self._body, self._body_bytes = [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer is none: the door has looked already, and others may send the same head."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, None
        if (
            self._errands is not None
            and not self.transport.is_closing()
            and (self.cycle is None or self.cycle.response_complete)
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
        ):
            self._opening = self._errands.open(self.url, self.headers)
        if self._opening is None:
            self._as_uvicorn_does()
        else:
            self._keep_alive = self.parser.should_keep_alive()

    def _as_uvicorn_does(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        self._begin_scope()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers  # the very list that stands in the scope
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.close()
            raise ConnectionAbortedError("too many requests at once")  # else the rest of the piece is read
        self.cycle.__class__ = Cycle  # uvicorn makes it, and offers no other way to make another one
        self._introduce()

    def _begin_scope(self) -> None:
        if self.server is None:
            self.server, self.client = get_local_addr(self.transport), get_remote_addr(self.transport)
        super().on_message_begin()

    def _introduce(self) -> None:
        cast("dict[str, Any]", self.scope).update({"router.connection": self, "router.cycle": self.cycle})

    def on_chunk_header(self) -> None:
        """What follows the last one is trailers; they could fill the memory as a head could."""
        self._head_bytes = -self._piece_bytes

    def on_body(self, body: bytes) -> None:
        self._head_bytes = None
        if self._opening is None:
            super().on_body(body)
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > HIGH_WATER_LIMIT:
            self.long_way(self._opening, b"".join(self._body), is_whole=False)

    def on_message_complete(self) -> None:
        self._head_bytes = None
        if self._opening is None:
            super().on_message_complete()
            return
        opening, self._opening = self._opening, None
        body, self._body = b"".join(self._body), []
        assert self._errands is not None
        self._errands.begin(opening, body, self)

    def long_way(
        self, opening: Opening, body: bytes, relay: ASGIApp | None = None, *, is_whole: bool = True
    ) -> None:
        """A task answers it: a `relay` that has taken the body, or whoever reads it."""
        self._opening, self._body = None, []
        url, headers = self.url, self.headers
        self._begin_scope()
        self.headers += headers
        path = url.decode("ascii")
        scope = cast("dict[str, Any]", self.scope)
        scope.update(opening.scope, method="POST", path=path, raw_path=url, query_string=b"")
        if relay is not None:
            scope["router.relay"] = relay
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self._keep_alive,
            on_response=self.on_response_complete,
        )
        self._introduce()
        if body:
            super().on_body(body)
        if is_whole:
            super().on_message_complete()
        task = self.loop.create_task(self.cycle.run_asgi(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- a whole answer without a task

    def takes(self, status: int) -> bool:
        """`respond` can answer with this, and need not wait."""
        return not self.flow.write_paused and 200 <= status < 600 and status not in (204, 304)

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """In one write. The headers are checked; their Content-Length, if there is one, is left out."""
        parts = [STATUS_LINE[status]]
        for name, value in chain(self.server_state.default_headers, headers):
            if name != b"content-length":
                parts += (name, b": ", value, b"\r\n")
        parts.append(b"content-length: %d\r\n" % len(body))
        parts.append(b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")
        parts.append(body)
        self.transport.write(b"".join(parts))
        self.server_state.total_requests += 1
        if self._keep_alive:
            self._rest()
        else:
            self.transport.close()

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's, but asks for no addresses: the system's answers cost a tenth of a short request."""
        self.connections.add(self)
        self.transport, self.flow, self.scheme = transport, FlowControl(transport), "http"
        self._watchers: set[Callable[[], None]] = set()
        self.url = b""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for gone in tuple(self._watchers):
            gone()
        if self.errand is not None:
            self.errand.left()

    def shutdown(self) -> None:
        """The server ends: after the answer that is under way."""
        if self.errand is None and self._opening is None:
            super().shutdown()
        else:
            self._keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._rests_since = self.loop.time()

    def _rest(self) -> None:
        """Nothing is under way. One timer sees to all the rests of a connection: making one costs more than
        looking at the time."""
        self._rests_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(self.timeout_keep_alive)

    def _look_again_in(self, delay_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(delay_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        left_s = self._rests_since + self.timeout_keep_alive - self.loop.time()
        if not self._is_at_rest:
            self._look_again_in(self.timeout_keep_alive)
        elif left_s > 0:
            self._look_again_in(left_s)
        else:
            super().timeout_keep_alive_handler()

    @property
    def _is_at_rest(self) -> bool:
        """Nothing comes in, and nothing is to be answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.errand is None and self._opening is None and self._head_bytes is None

    def _failed(self, error: httptools.HttpParserError) -> None:
        """The parser's word, unless it only wraps what a callback raised: that is a mistake of ours."""
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, Exception) and not isinstance(
            cause, (httptools.HttpParserError, ConnectionAbortedError)
        ):
            method = (self.parser.get_method() or b"").decode("latin-1")
            self._refuse(errors.bug(cause, method, self._path))
        elif not self.transport.is_closing():
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP never reaches the application. `msg` is uvicorn's or our own."""
        self._refuse(errors.response(BadRequest(msg), self._path))

    def _refuse(self, answer: Response) -> None:
        """Instead of the application, and as the last thing on this connection.

        Not told while an earlier request is unanswered: its client would take this for the answer.
        """
        owed = self.cycle is not None and not self.cycle.response_complete
        if not (owed and (self._in_head or self.pipeline or self.cycle.response_started)):
            self.transport.write(self._last_answer(answer))
        self.transport.close()

    def _last_answer(self, answer: Response) -> bytes:
        given = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            *own_headers(request_id(given.decode("latin-1"))),
            (b"connection", b"close"),
        ]
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        return STATUS_LINE[answer.status_code] + lines + b"\r\n" + bytes(answer.body)

    @property
    def _path(self) -> str:
        """As far as it has come."""
        return self.url.decode("latin-1").partition("?")[0]


def _nothing() -> None:
    """There is nothing to end."""


class Cycle(RequestResponseCycle):
    """uvicorn's way of answering, with a shorter one for what the relay sends: llama-server's headers have
    been through a parser, an event needs no list of its parts, and uvloop writes at once what comes first:
    a head by itself would wake the client twice."""

    _is_checked = False
    _has_body = True
    _head = b""
    _head_timer: asyncio.TimerHandle | None = None

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
        if message[CHECKED] is Head.SOON:
            loop = asyncio.get_running_loop()
            self._head_timer = loop.call_later(HEAD_WAITS_S, self._write_head)

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

    def _write_head(self) -> None:
        if self._head and not self.disconnected:
            self._write(b"")

    def _write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
            if self._head_timer is not None:
                self._head_timer.cancel()
        self.transport.write(data)
