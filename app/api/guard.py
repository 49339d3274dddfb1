"""Before anything else runs: host names, origins, keys, announced sizes and request ids. Pure ASGI.

A body is counted by who reads it (`app/proxy/asgi.py`). One that nobody reads is no matter, however large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.api_keys import Client, Rules
from app.access.header_lookup import RequestHeaders
from app.access.hosts import is_ours
from app.access.origins import Origins
from app.access.request_id import OURS, own_headers, request_id
from app.api import framework_errors
from app.core.config import Config
from app.domain.addresses_and_origins import ANY_ORIGIN
from app.domain.errors import OriginNotAllowed, RouterError
from app.proxy import request_parameters as model_requests
from app.proxy.gateway import Gateway, check_target
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


def unknown_origin(origin: str) -> OriginNotAllowed:
    return OriginNotAllowed(
        f"pages of {origin[:100] or 'other sites'} may not ask this router; add that origin to "
        "api.cors_allow_origins"
    )


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
        """Who asks, and under which id. What the client is to be told instead."""
        headers = RequestHeaders(scope["headers"])
        scope["router.headers"], scope["router.request_id"] = headers, request_id(headers.get("x-request-id"))
        try:
            check_target(len(scope["raw_path"]) + len(scope["query_string"]))
            scope["router.client"] = self._rules().check(scope["method"], scope["path"], headers)
        except RouterError as error:
            return error
        return None


class Cors(CORSMiddleware):
    """Starlette's, but it is told origins in our words, and what it refuses is told in the API's shape."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_origins=[ANY_ORIGIN] if origins.any else [],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "X-Queue-Wait-Ms", "X-Model-Load-Ms", "X-Priority-Effective"],
        )
        self.allow_private_network = True  # not every Starlette can be told it above
        self._origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        return self._origins.allow(origin)

    def preflight_response(self, request_headers: StarletteHeaders) -> Response:
        origin = request_headers["origin"]
        if not self.is_allowed_origin(origin):
            return _RefusedPreflight(unknown_origin(origin))
        answer = super().preflight_response(request_headers)
        if answer.status_code >= 400:
            method = request_headers["access-control-request-method"]
            return _RefusedPreflight(OriginNotAllowed(f"{method[:40]} may not be used by pages"))
        if "access-control-request-private-network" in request_headers:
            answer.headers["Access-Control-Allow-Private-Network"] = "true"
        return answer


class _RefusedPreflight(Response):
    """Only when it is sent is there a path, which says whose shape the error has."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(status_code=error.status)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await framework_errors.response(self._error, scope["path"])(scope, receive, send)


class CorsGate:
    """Lets pages of other origins read answers, where the configuration names any."""

    TAKES = ("api.cors_allow_origins",)

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app = app
        self.apply(config)

    def apply(self, config: Config) -> None:
        origins = Origins(config.api.cors_allow_origins)
        self._gate: ASGIApp = Cors(self._app, origins) if origins else self._refuse_preflights

    async def _refuse_preflights(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A browser shows nothing but the answer to its preflight: that has to say what is missing."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = RequestHeaders(scope["headers"])
            if "access-control-request-method" in headers and not is_ours(headers):
                refused = unknown_origin(headers.get("origin", ""))
                await framework_errors.response(refused, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate(scope, receive, send)


def _with_own_headers(send: Send, request_id: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [header for header in message.get("headers", ()) if header[0] not in OURS]
            message["headers"] = others + own_headers(request_id)
        await send(message)

    return wrapped
