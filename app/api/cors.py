"""Which web pages of other origins may read answers (CORS). Pure ASGI."""

from __future__ import annotations

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.header_lookup import RequestHeaders
from app.access.hosts import is_ours
from app.access.origins import Origins
from app.api import framework_errors
from app.core.config import Config
from app.domain.addresses_and_origins import ANY_ORIGIN
from app.domain.errors import OriginNotAllowed, RouterError

EXPOSED = ("X-Request-ID", "X-Queue-Wait-Ms", "X-Model-Load-Ms", "X-Priority-Effective", "Retry-After",
           "X-Should-Retry")  # fmt: skip
"""What scripts of a page may read: without the last two a client in a page repeats what cannot succeed."""


def unknown_origin(origin: str) -> OriginNotAllowed:
    return OriginNotAllowed(
        f"pages of {origin[:100] or 'other sites'} may not ask this router; add that origin to "
        "api.cors_allow_origins"
    )


class Cors(CORSMiddleware):
    """Starlette's, but it is told origins in our words, and what it refuses is told in the API's shape."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_origins=[ANY_ORIGIN] if origins.any else [],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
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
