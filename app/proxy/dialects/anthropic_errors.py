"""Errors in the shape of Anthropic's Messages API. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.errors import RouterError
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.sse_format import event

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


class _Anthropic(Dialect):
    def body(self, error: RouterError) -> dict[str, Any]:
        told = error.body()["error"]
        type_ = _TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {**told, "type": type_, "message": _in_its_words(told)}}

    def last_event(self, error: RouterError) -> bytes:
        return event(self.body(error), "error")


def _in_its_words(told: Mapping[str, Any]) -> str:
    """Agents look for these words, and shorten their conversation."""
    message: str = told["message"]
    if told["code"] != "context_length_exceeded" or "n_prompt_tokens" not in told:
        return message
    return f"prompt is too long: {told['n_prompt_tokens']} tokens > {told.get('n_ctx')} maximum; {message}"


ANTHROPIC = _Anthropic()
