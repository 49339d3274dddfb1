"""Before anything else runs: host names, origins, keys, body size and request ids. Pure ASGI."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.headers import RequestHeaders
from app.access.request_id import OURS, own_headers, request_id
from app.access.rules import Client, Rules
from app.api import errors
from app.core.config import Config
from app.domain.errors import Forbidden, OriginNotAllowed, RouterError, TargetTooLong


def client_of(request: Request) -> Client:
    client: Client = request.scope["router.client"]
    return client


def rules_of(request: Request) -> Rules:
    found: Rules = request.app.state.rules
    return found


def require_admin(request: Request) -> None:
    """Raises `Forbidden` for a key without the right to manage."""
    if not client_of(request).admin:
        raise Forbidden('this API key may not manage models; use one with "admin": true')


class Guard:
    """Lets a request through, with its id and client in the scope, or answers it."""

    def __init__(self, app: ASGIApp, rules: Callable[[], Rules]) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = None if "router.client" in scope else self._look(scope)  # an errand has been let in
        send = _with_own_headers(send, scope["router.request_id"])
        if error is not None:
            await errors.response(error, scope["path"])(scope, receive, send)
            return
        with contextlib.suppress(ClientDisconnect):  # in the middle of its body: nobody to answer
            await self._app(scope, _counted(receive, self._rules()), send)

    def _look(self, scope: Scope) -> RouterError | None:
        """Who asks, and under which id. What the client is to be told instead."""
        headers = RequestHeaders(scope["headers"])
        scope["router.headers"], scope["router.request_id"] = headers, request_id(headers.get("x-request-id"))
        try:
            _check_target(scope)
            scope["router.client"] = self._rules().check(scope["method"], scope["path"], headers)
        except RouterError as error:
            return error
        return None


MAX_TARGET_BYTES = 8192


def _check_target(scope: Scope) -> None:
    """Routes are regular expressions, and an alias may stand anywhere in a path."""
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise TargetTooLong(f"the path and its query may have at most {MAX_TARGET_BYTES} bytes")


class Cors(CORSMiddleware):
    """Starlette's, but a preflight that it refuses is told so in the API's shape."""

    def preflight_response(self, request_headers: StarletteHeaders) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        refused = OriginNotAllowed(
            "this origin, method or header may not be used; see api.cors_allow_origins"
        )
        return errors.response(refused, "")


class CorsGate:
    """Lets pages of other origins read answers, where the configuration names any."""

    TAKES = ("api.cors_allow_origins",)

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app = self._gate = app
        self.apply(config)

    def apply(self, config: Config) -> None:
        origins = config.api.cors_allow_origins
        self._gate = (
            self._app
            if not origins
            else Cors(
                self._app,
                allow_origins=list(origins),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["X-Request-ID", "X-Queue-Wait-Ms", "X-Model-Load-Ms", "X-Priority-Effective"],
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate(scope, receive, send)


def _counted(receive: Receive, rules: Rules) -> Receive:
    """Counts a body while it comes in: a chunked one tells no length beforehand."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > rules.max_body_bytes:
            raise rules.too_large()
        return message

    return counted


def _with_own_headers(send: Send, request_id: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [header for header in message.get("headers", ()) if header[0] not in OURS]
            message["headers"] = others + own_headers(request_id)
        await send(message)

    return wrapped
