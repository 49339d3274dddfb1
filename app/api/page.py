"""The dashboard page."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.api.documentation import FOR_MONITORING

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
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_without_range(scope), receive, send)


def _without_range(scope: Scope) -> Scope:
    return {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}


@router.get("/", response_model=None)
async def dashboard() -> Response:
    return WholeFile(_INDEX, headers=_HEADERS)


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    return Response(status_code=204)
