"""The dashboard page."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from app.api.documentation import FOR_MONITORING

router = APIRouter(tags=["monitoring"], responses=FOR_MONITORING)

_INDEX = Path(__file__).parent / "ui" / "index.html"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/", response_model=None)
async def dashboard() -> Response:
    return FileResponse(_INDEX, headers=_HEADERS)


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    return Response(status_code=204)
