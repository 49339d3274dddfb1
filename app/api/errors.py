"""Errors as clients expect them: OpenAI's shape, on `/v1/messages` Anthropic's, also inside a stream."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.domain.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, RouterError

logger = logging.getLogger(__name__)

ERROR = "router.error"
"""In the scope of a request that was answered with an error: that error."""

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def install(app: FastAPI) -> None:
    """Every error of every route goes through here."""
    app.add_exception_handler(RouterError, _router_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    app.add_exception_handler(Exception, _bug)


class ErrorResponse(JSONResponse):
    """Leaves its error in the scope, for the log."""

    def __init__(self, error: RouterError, path: str) -> None:
        super().__init__(_shaped(error, path), status_code=error.status, headers=_headers(error))
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ERROR] = self._error
        await super().__call__(scope, receive, send)


def response(error: RouterError, path: str) -> Response:
    return ErrorResponse(error, path)


def bug(error: Exception, method: str, path: str) -> Response:
    """The answer to a request that met a mistake of ours, which goes to the log."""
    logger.error("%s %s failed", method, path, exc_info=error)
    return response(InternalError("the router made a mistake; its log says more"), path)


def error_event(error: RouterError, path: str) -> bytes:
    """The last event of a stream whose headers have been sent."""
    return _event(_shaped(error, path), path)


def error_body(text: bytes, status: int, path: str) -> bytes:
    """llama-server's own error as an event; as it is, if it has the usual shape."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or "error" not in parsed:
        message = text.decode("utf-8", "replace")[:2000] or f"llama-server answered with status {status}"
        parsed = {"error": {"message": message, "type": "server_error", "param": None, "code": status}}
    return _event(parsed, path)


def _event(body: dict[str, Any], path: str) -> bytes:
    name = b"event: error\n" if _is_anthropic(path) else b""
    return name + b"data: " + json.dumps(body).encode() + b"\n\n"


def _is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def _shaped(error: RouterError, path: str) -> dict[str, Any]:
    body = error.body()
    if not _is_anthropic(path):
        return body
    return {
        "type": "error",
        "error": {**body["error"], "type": _ANTHROPIC_TYPES.get(error.status, "api_error")},
    }


def _headers(error: RouterError) -> dict[str, str]:
    headers = {}
    if not error.retryable:
        headers["x-should-retry"] = "false"
    elif error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


async def _router_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RouterError)
    return response(error, request.scope["path"])


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or another method."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    translated: RouterError
    if error.status_code == 404:
        translated = NotFound(f"there is no {path[:200]}; docs/api.md lists the endpoints, /docs shows them")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        translated = MethodNotAllowed(f"{path[:200]} does not take {request.method}; use {allowed}")
    else:
        translated = BadRequest(str(error.detail))
        translated.status = error.status_code
    answer = response(translated, path)
    answer.headers.update(error.headers or {})
    return answer


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return response(BadRequest(f"{place}: {first['msg']}", param=place or None), request.scope["path"])


class _Silence(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Says nothing."""


async def _nobody_there(request: Request, error: Exception) -> Response:
    """The client left in the middle of its body."""
    return _Silence()


async def _bug(request: Request, error: Exception) -> Response:
    return bug(error, request.method, request.scope["path"])
