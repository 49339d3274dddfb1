"""The same exchange behind ASGI: for connections that uvicorn has, and for whatever else speaks ASGI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.size_limits import announced_length
from app.domain.alarm import Alarm
from app.domain.errors import RouterError
from app.proxy import answer_writer
from app.proxy.catch_bugs import internal_error
from app.proxy.dialect_by_path import dialect_of
from app.proxy.exchange import Exchange
from app.proxy.forwarded_headers import from_lines
from app.proxy.gateway import Gateway
from app.proxy.llama_server_info import info_path_of, tunnel_target
from app.proxy.preparation import Accepted
from app.proxy.request_parameters import require_admin
from app.proxy.routes import BY_PATH, TUNNEL, InfoPath, is_tunnel
from app.proxy.timeouts_and_heartbeats import CUT_AFTER_S

logger = logging.getLogger(__name__)

ERROR_KEY = "router.error"
"""In the scope of a request that was answered with an error: that error, for the log."""

MAX_WAITING_BYTES = 65536
"""Of an answer, between the exchange and a client that takes it slowly."""


class AsgiProxy:
    """Answers requests to models; everything else goes on to the framework.

    The framework's routes describe these endpoints and answer other methods. Its way through middleware,
    routing and dependencies costs as much as a fifth of the router's CPU for a short request.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        endpoint = BY_PATH.get(path) if method == "POST" else None
        info = info_path_of(method, path, scope["query_string"])
        if endpoint is None and info is None and not is_tunnel(method, path):
            await self._app(scope, receive, send)
            return
        answer, task = AsgiAnswer(scope, send), None
        try:
            task = self._gateway.start(await self._whole(scope, info, receive), answer)
        except RouterError as error:
            answer.refuse(error)
        except ClientDisconnect:
            raise
        except Exception as bug:  # of ours: its client is told
            answer.bug(bug)
        try:
            await answer.run(receive)
        finally:
            if task is not None:
                task.cancel()

    async def _whole(self, scope: Scope, info: InfoPath | None, receive: Receive) -> Accepted:
        accepted = self._accepted(scope) if info is None else self._accepted_info(scope, info)
        async for piece in pieces_of_body(receive):
            accepted.body.add(piece)
        return accepted

    def _accepted(self, scope: Scope) -> Accepted:
        """`Guard` has checked who asks."""
        headers, client, id_ = scope["router.headers"], scope["router.client"], scope["router.request_id"]
        endpoint = BY_PATH.get(scope["path"])
        meta = self._gateway.meta(endpoint, headers, client)
        body = self._gateway.body_for(endpoint, announced_length(headers))
        return Accepted(endpoint, scope["method"], _target(scope), id_, meta, body)

    def _accepted_info(self, scope: Scope, info: InfoPath) -> Accepted:
        client = scope["router.client"]
        if info.admin:
            require_admin(client)
        meta = self._gateway.tunnel_meta(scope["router.headers"], client)._replace(is_navigation=False)
        target = tunnel_target(self._gateway.backend.manager.fleet, info, scope["query_string"])
        body = self._gateway.body_for(None, announced_length(scope["router.headers"]))
        return Accepted(None, scope["method"], target, scope["router.request_id"], meta, body)


class AsgiAnswer:
    """The `Entrance` of one request: what is written waits here for the task that sends it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._exchange: Exchange | None = None
        self._messages: deque[Message] = deque()
        self._waiting_bytes = 0
        self._is_over = False
        self._news = asyncio.Event()
        self._alarm = Alarm(self._ring)

    # --- the task's side

    async def run(self, receive: Receive) -> None:
        """Until the answer is complete or its client has left."""
        listening = asyncio.ensure_future(_until_disconnect(receive))
        listening.add_done_callback(self._on_disconnect)
        try:
            while not self._is_over or self._messages:
                if not self._messages:
                    self._news.clear()
                    await self._news.wait()
                    continue
                await self._send_next()
        finally:
            listening.cancel()
            self._alarm.cancel()
            if self._exchange is not None:
                self._exchange.client_left()  # unless it has ended
            del self._exchange, self._alarm  # each holds this

    async def _send_next(self) -> None:
        message = self._messages.popleft()
        await self._send(message)
        self._waiting_bytes -= len(message.get("body", b""))
        exchange = self._exchange
        if exchange is not None and self._waiting_bytes <= MAX_WAITING_BYTES:
            exchange.writable()

    def _on_disconnect(self, listening: asyncio.Future[None]) -> None:
        if listening.cancelled() or listening.exception() is not None:
            return
        if not self._is_over:
            if self._exchange is not None:
                self._exchange.client_left()
            self._messages.clear()
            self._end()

    # --- the gateway's side

    def begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.begin()

    def refuse(self, error: RouterError) -> None:
        self._scope[ERROR_KEY] = error.without_frames()
        dialect = dialect_of(self._scope["path"])
        status, lines, body = answer_writer.error_answer(error, dialect, self._scope["router.request_id"])
        self.start(status, lines, len(body))
        self.write(body, True)

    def bug(self, bug: Exception) -> None:
        """In what comes before an exchange, which sees to its own."""
        logger.error("%s %s failed", self._scope["method"], self._scope["path"], exc_info=bug)
        self.refuse(internal_error())

    def wake(self, delay_s: float) -> None:
        self._alarm.set(asyncio.get_running_loop().time() + delay_s)

    def _ring(self) -> None:
        if self._exchange is not None:
            self._exchange.due(time.monotonic())

    # --- the exchange's side

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        headers = from_lines(lines)
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes, last: bool) -> bool:
        self._put({"type": "http.response.body", "body": data, "more_body": not last})
        self._waiting_bytes += len(data)
        if last:
            self._end()
        return self._waiting_bytes <= MAX_WAITING_BYTES

    def cut(self) -> None:
        asyncio.get_running_loop().call_later(CUT_AFTER_S, self._end)

    def abort(self) -> None:
        """The server closes a connection whose answer was not completed."""
        self._messages.clear()
        self._end()

    def _put(self, message: Message) -> None:
        self._messages.append(message)
        self._news.set()

    def _end(self) -> None:
        self._is_over = True
        self._news.set()


async def pieces_of_body(receive: Receive) -> AsyncIterator[bytes]:
    """Raises `ClientDisconnect` if it does not come to its end."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _target(scope: Scope) -> bytes:
    """As it was sent, where the server tells."""
    raw: bytes = b"/" + (scope.get("raw_path") or b"").lstrip(b"/")
    if not raw.startswith(TUNNEL.encode()):
        raw = quote(scope["path"], safe="/").encode()
    query: bytes = scope["query_string"]
    return raw + b"?" + query if query else raw
