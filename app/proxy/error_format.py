"""The shape of an error: OpenAI's, and on `/v1/messages` Anthropic's. Pure."""

from __future__ import annotations

import json
from typing import Any

from app.domain.errors import RouterError

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def body_of(error: RouterError, path: str) -> dict[str, Any]:
    """The error as the clients of this path expect it."""
    body = error.body()
    if not is_anthropic(path):
        return body
    return {
        "type": "error",
        "error": {**body["error"], "type": _ANTHROPIC_TYPES.get(error.status, "api_error")},
    }


def headers_of(error: RouterError) -> dict[str, str]:
    """What tells a client whether, and when, to try again."""
    headers = dict(error.headers)
    if not error.retryable:
        headers["x-should-retry"] = "false"
    elif error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return headers


def body_of_upstream(text: bytes, status: int) -> dict[str, Any]:
    """llama-server's own error: as it is, if it has the usual shape."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and "error" in parsed:
        return parsed
    message = text.decode("utf-8", "replace")[:2000] or f"llama-server answered with status {status}"
    return {"error": {"message": message, "type": "server_error", "param": None, "code": status}}
