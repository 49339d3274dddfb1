"""The dashboard page and its files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.api.openapi import FOR_MONITORING, openapi_json

router = APIRouter(tags=["monitoring"], responses=FOR_MONITORING)

FOLDER = Path(__file__).parent / "ui"
_INDEX = FOLDER / "index.html"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class WholeFile(FileResponse):
    """Nobody needs a part of these files, and Starlette answers a malformed `Range` in a shape of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_without_range(scope), receive, send)


class WholeFiles(StaticFiles):
    """Asked for anew each time: parts of an older page beside newer ones do not work."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_without_range(scope), receive, send)


def _without_range(scope: Scope) -> Scope:
    return {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}


FOR_PROGRAMS = "Ollama is running"
"""Programs made for Ollama ask this before anything else."""


@router.get("/", response_model=None)
async def dashboard(request: Request) -> Response:
    """The page, for who can show it."""
    headers = _HEADERS | {"Vary": "Accept"}
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(FOR_PROGRAMS, headers=headers)
    return WholeFile(_INDEX, headers=headers)


@router.get("/docs", response_model=None, include_in_schema=False)
async def documentation() -> Response:
    """From our own files: what another server sends could use the key of whoever looks at it."""
    return WholeFile(FOLDER / "docs.html", headers=_HEADERS)


@router.get("/openapi.json", include_in_schema=False)
def openapi_document(request: Request) -> Response:
    """In a thread, as no coroutine: making it takes a fifth of a second."""
    return Response(openapi_json(request.app), media_type="application/json")


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    return Response(status_code=204)
