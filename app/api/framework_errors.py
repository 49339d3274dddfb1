"""Errors of the framework's routes, in the shape of the API that was asked."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.domain.errors import BadRequest, MethodNotAllowed, NotFound, RouterError
from app.proxy.asgi import ERROR_KEY
from app.proxy.catch_bugs import internal_error
from app.proxy.dialect_by_path import dialect_of
from app.proxy.dialects.dialect import retry_headers
from app.proxy.routes import meant_by

logger = logging.getLogger(__name__)


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
        dialect = dialect_of(path)
        headers = retry_headers(error) | {"content-type": dialect.json_type.decode()}
        super().__init__(dialect.body(error), dialect.status(error), headers)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ERROR_KEY] = self._error.without_frames()
        await super().__call__(scope, receive, send)


def response(error: RouterError, path: str) -> Response:
    return ErrorResponse(error, path)


def bug(error: Exception, method: str, path: str) -> Response:
    """The answer to a request that met a mistake of ours, which goes to the log."""
    logger.error("%s %s failed", method, path, exc_info=error)
    return response(internal_error(), path)


async def _router_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RouterError)
    return response(error, request.scope["path"])


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or another method."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    translated: RouterError
    headers = dict(error.headers or {})
    if error.status_code == 404:
        known = meant_by(path)
        hint = f"did you mean {known}?" if known else "docs/api.md lists the endpoints, /docs shows them"
        translated = NotFound(f"there is no {path[:200]}; {hint}")
    elif error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        if "GET" in allowed.split(", ") and "HEAD" not in allowed:
            headers["Allow"] = allowed = f"{allowed}, HEAD"
        translated = MethodNotAllowed(f"{path[:200]} does not take {request.method}; use {allowed}")
    else:
        translated = BadRequest(str(error.detail))
        translated.status = error.status_code
    answer = response(translated, path)
    answer.headers.update(headers)
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
