"""Errors in a stream of OpenAI's Responses API. Pure."""

from __future__ import annotations

from typing import Any

from app.domain.errors import RouterError
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.sse_format import event


class _Responses(Dialect):
    def last_event(self, error: RouterError) -> bytes:
        return event(error_event(error, 0), "error")


def error_event(error: RouterError, sequence_number: int) -> dict[str, Any]:
    """As it stands in a stream of the Responses API. The four fields are those of its schema; some clients
    read the object that other APIs have."""
    told = error.body()
    flat = {name: told["error"][name] for name in ("code", "message", "param")}
    return {"type": "error", "sequence_number": sequence_number, **flat, **told}


RESPONSES = _Responses()
