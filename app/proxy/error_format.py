"""An error as an answer: in the shape of the API that was asked, and whether to try again. Pure."""

from __future__ import annotations

from typing import Any

from app.domain.errors import RouterError
from app.proxy.dialects.voice import voice_of


def body_of(error: RouterError, path: str) -> dict[str, Any]:
    """The error as the clients of this path expect it."""
    return voice_of(path).body(error)


def type_of(path: str) -> str:
    """The media type of its body."""
    return voice_of(path).json_type.decode()


def status_of(error: RouterError, path: str) -> int:
    """As in that API."""
    return voice_of(path).status(error)


def headers_of(error: RouterError) -> dict[str, str]:
    """What tells a client whether, and when, to try again."""
    headers = dict(error.headers)
    if not error.retryable:
        headers["x-should-retry"] = "false"
    elif error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return headers
