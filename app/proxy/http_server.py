"""The protocol in front of every connection: it answers requests to models, and gives the others to uvicorn.

The first request that is not for a model hands the connection over, for good. What has to hold for all
connections, the bounds on what may come, is kept here, in front of both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.access.request_id import request_id
from app.domain.alarm import Alarm
from app.domain.errors import BadRequest, RouterError
from app.proxy import answer_writer
from app.proxy.catch_bugs import internal_error
from app.proxy.connection_state import ConnectionState
from app.proxy.dialect_by_path import dialect_of
from app.proxy.exchange import Exchange
from app.proxy.exchange_interfaces import Pending
from app.proxy.gateway import Gateway
from app.proxy.handover import Handover
from app.proxy.preparation import Accepted
from app.proxy.receive_buffer import ReceiveBuffer
from app.proxy.request_head import RequestHead
from app.proxy.request_reader import BodyPart
from app.proxy.timeouts_and_heartbeats import CUT_AFTER_S, FIRST_HEAD_S

logger = logging.getLogger(__name__)


class ProxyProtocol(asyncio.Protocol):
    """One connection; the `Downstream` of its exchanges, one after the other."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        gateway: Gateway,
    ) -> None:
        self._gateway, self._server_state = gateway, server_state
        self._make_uvicorn = partial(HttpToolsProtocol, config, server_state, app_state, _loop)
        self._keep_alive_s = float(config.timeout_keep_alive)
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._state = ConnectionState.IDLE
        self._received: ReceiveBuffer
        self._advances_soon = self._is_write_paused = False
        self._alarm = Alarm(self._ring, self._loop)
        self._writer = answer_writer.AnswerWriter()
        self._head: RequestHead | None = None
        self._arriving: Accepted | None = None
        self._keep_alive, self._client = True, ""
        self._reading: Pending | None = None
        self._exchange: Exchange | None = None
        self._handover: Handover | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        gateway = self._gateway
        self._received = ReceiveBuffer(
            self._transport, gateway.memory, gateway.heads, gateway.turns, self._advance
        )
        gateway.turns.connected()
        self._alarm.set(self._loop.time() + FIRST_HEAD_S)
        self._server_state.connections.add(cast(Any, self))

    def data_received(self, data: bytes) -> None:
        if self._state is ConnectionState.CLOSING:
            return
        self._received.feed(data)
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = ConnectionState.CLOSING
        self._server_state.connections.discard(cast(Any, self))
        self._alarm.cancel()
        self._received.close()
        if self._handover is not None:
            self._handover.connection_lost(exc)
            self._handover = None
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self._arriving = None
        if self._exchange is not None:
            self._exchange.client_left()
            self._exchange = None
        del self._alarm  # each holds the other

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._handover is not None:
            self._handover.pause_writing()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._handover is not None:
            self._handover.resume_writing()
        elif self._exchange is not None:
            self._exchange.writable()

    def shutdown(self) -> None:
        """The server ends: after the answer that is under way. (uvicorn's protocol hears of it by itself.)"""
        if self._state is ConnectionState.IDLE:
            self._transport.close()
        else:
            self._keep_alive = False

    # --- what comes in

    def _advance(self) -> None:
        """As far as it can be dealt with now."""
        self._advances_soon = False
        try:
            while self._takes_more and (event := self._received.next()) is not None:
                if isinstance(event, RequestHead):
                    self._on_head(event)
                else:
                    self._on_body(event)
        except BadRequest as error:
            self._refuse_bytes(error)
        except Exception as error:  # a bug of ours: its client is told, the others go on
            self.bug(error)
        beside = self._handover.held_bytes if self._handover is not None else 0
        if not self._received.settle(is_taken=self._takes_more, beside=beside):
            self._refuse_bytes(self._gateway.memory.full())

    def _advance_soon(self) -> None:
        self._advances_soon = True
        self._loop.call_soon(self._advance)

    @property
    def _takes_more(self) -> bool:
        if self._advances_soon:
            return False
        if self._handover is not None and self._state is ConnectionState.HANDED_OVER:
            return self._handover.takes_body if self._received.in_body else self._handover.takes_head
        return self._state in (ConnectionState.IDLE, ConnectionState.RECEIVING)

    def _on_head(self, head: RequestHead) -> None:
        if self._handover is not None:
            self._handover.head(head)
            return
        self._head, self._keep_alive, self._client = head, head.lines.keep_alive, ""
        try:
            accepted = self._gateway.accept(head)
        except RouterError as error:
            self.refuse(error)
            return
        if accepted is None:
            self._hand_over(head)
            return
        self._client = accepted.meta.client.name
        if head.length == 0:
            self._start(accepted)
            return
        self._state, self._arriving = ConnectionState.RECEIVING, accepted
        if self._received.reader.waiting == 0 and head.lines.expects_continue:
            self._transport.write(answer_writer.CONTINUE)

    def _on_body(self, part: BodyPart) -> None:
        if self._handover is not None:
            self._handover.body(part.raw, last=part.last)
            return
        if self._arriving is None:  # of a request that was refused
            if part.last and not self._keep_alive:
                self._state = ConnectionState.CLOSING
                self._transport.close()
            return
        try:
            self._arriving.body.add(part.data)
        except RouterError as error:
            self._arriving = None
            self.refuse(error)
            return
        if part.last:
            self._start(self._arriving)

    def _start(self, accepted: Accepted) -> None:
        self._state, self._arriving = ConnectionState.ANSWERING, None
        self._reading = self._gateway.start(accepted, self)

    def begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.begin()

    def _hand_over(self, head: RequestHead) -> None:
        self._state = ConnectionState.HANDED_OVER
        self._server_state.connections.discard(cast(Any, self))  # uvicorn's own protocol takes its place
        self._handover = Handover(self._make_uvicorn(), self._transport, self._advance_soon)
        if self._is_write_paused:
            self._handover.pause_writing()
        self._handover.head(head)

    # --- what is refused

    def refuse(self, error: RouterError) -> None:
        """Instead of an exchange. The rest of the body is read and ignored."""
        head = self._head
        assert head is not None
        id_, peer = request_id(head.given_id), self._transport.get_extra_info("peername")
        self._gateway.tell_refusal(error.without_frames(), head, id_, peer, self._client)
        status, lines, body = answer_writer.error_answer(error, dialect_of(head.path), id_)
        self.start(status, lines, len(body))
        self.write(body, True)

    def _refuse_bytes(self, error: RouterError) -> None:
        """Nobody knows where the next request would begin."""
        reader = self._received.reader
        is_owed = self._arriving is not None if self._handover is None else self._handover.owes_answer
        self._state = ConnectionState.CLOSING
        if is_owed or not self._received.in_body:  # else the request has its answer, or some of it
            self._head, self._keep_alive = reader.broken_head, False
            self.refuse(error)
        else:
            self._transport.close()

    def bug(self, bug: Exception) -> None:
        """In what this protocol does itself; exchanges see to their own."""
        head = self._head = self._head or self._received.reader.broken_head
        logger.error("%s %s failed", head.method, head.path, exc_info=bug)
        if self._handover is None and self._exchange is None and not self._transport.is_closing():
            self._state, self._keep_alive = ConnectionState.CLOSING, False
            self.refuse(internal_error())
        else:
            self._transport.abort()

    # --- the answer

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        head = self._head
        assert head is not None
        defaults, kept = self._server_state.default_headers, self._keep_alive
        self._keep_alive = self._writer.start(head.lines, status, lines, length, defaults, keep_alive=kept)

    def write(self, data: bytes, last: bool) -> bool:
        if self._transport.is_closing():
            return True
        self._transport.write(self._writer.body(data, last=last))
        if last:
            self._answered()
        return not self._is_write_paused

    def cut(self) -> None:
        self._exchange, self._state = None, ConnectionState.CLOSING
        self._loop.call_later(CUT_AFTER_S, self.abort)

    def abort(self) -> None:
        """A client that does not read would keep the connection from closing."""
        self._exchange, self._state = None, ConnectionState.CLOSING
        (self._transport.abort if self._is_write_paused else self._transport.close)()

    def _answered(self) -> None:
        self._server_state.total_requests += 1
        self._exchange = None
        is_over = self._state is ConnectionState.CLOSING or not self._received.in_body
        if is_over and not self._keep_alive:
            self._state = ConnectionState.CLOSING
            self._transport.close()
            return
        self._state = ConnectionState.IDLE
        self._alarm.set(self._loop.time() + self._keep_alive_s)
        if self._received.reader.waiting:
            self._advance_soon()  # not now: the exchange has not ended yet

    # --- time

    def wake(self, delay_s: float) -> None:
        if self._exchange is not None:  # a timer that fires too early is cheaper than one that is made anew
            self._alarm.set(self._loop.time() + min(delay_s, self._keep_alive_s))

    def _ring(self) -> None:
        if self._exchange is not None:
            self._exchange.due(time.monotonic())
        elif self._state is ConnectionState.IDLE and self._received.is_between:
            is_read = not self._transport.get_write_buffer_size()  # else nobody takes the last answer
            (self._transport.close if is_read else self._transport.abort)()
        elif self._takes_more and self._received.has_stalled():
            self._transport.abort()
        elif self._state is not ConnectionState.CLOSING:
            self._alarm.set(self._loop.time() + self._keep_alive_s)
