"""Before anything else runs: host names, origins, keys, announced sizes and request ids. Pure ASGI.

A body is counted by who reads it (`app/proxy/asgi.py`). One that nobody reads is no matter, however large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.api_keys import Client, Rules
from app.access.header_lookup import RequestHeaders
from app.access.request_id import OURS, own_headers, request_id
from app.access.size_limits import check_target
from app.api import framework_errors
from app.domain.errors import RouterError
from app.proxy import request_parameters as model_requests
from app.proxy.gateway import Gateway
from app.proxy.request_memory_limit import ClientMemory


def client_of(request: Request) -> Client:
    client: Client = request.scope["router.client"]
    return client


def rules_of(request: Request) -> Rules:
    found: Rules = request.app.state.rules
    return found


def memory_of(request: Request) -> ClientMemory:
    gateway: Gateway = request.app.gateway
    return gateway.memory


def require_admin(request: Request) -> None:
    """Raises `Forbidden` for a key without the right to manage."""
    model_requests.require_admin(client_of(request))


class Guard:
    """Lets a request through, with its id and client in the scope, or answers it."""

    def __init__(self, app: ASGIApp, rules: Callable[[], Rules]) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._look(scope)
        send = _with_own_headers(send, scope["router.request_id"])
        if error is not None:
            await framework_errors.response(error, scope["path"])(scope, receive, send)
            return
        with contextlib.suppress(ClientDisconnect):  # in the middle of its body: nobody to answer
            await self._app(scope, receive, send)

    def _look(self, scope: Scope) -> RouterError | None:
        """Put into the scope who asks, and under which id. The error that refuses the request, or None."""
        headers = RequestHeaders(scope["headers"])
        scope["router.headers"], scope["router.request_id"] = headers, request_id(headers.get("x-request-id"))
        try:
            check_target(len(scope["raw_path"]) + len(scope["query_string"]))
            scope["router.client"] = self._rules().check(scope["method"], scope["path"], headers)
        except RouterError as error:
            return error
        return None


def _with_own_headers(send: Send, request_id: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [header for header in message.get("headers", ()) if header[0] not in OURS]
            message["headers"] = others + own_headers(request_id)
        await send(message)

    return wrapped
