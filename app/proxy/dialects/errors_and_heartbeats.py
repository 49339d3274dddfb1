"""How an API tells what is no answer: errors, before and after the head, and that it still waits. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from app.domain.config_types import Heartbeats
from app.domain.errors import RouterError
from app.proxy.dialects.sse_format import comment, event, line


class Dialect:
    """OpenAI's chat completions, and most of what others speak. An API of its own overrides what differs."""

    stream_type = b"text/event-stream"
    """Of a stream whose head is sent before llama-server's."""

    json_type = b"application/json"
    """Of what the router answers by itself."""

    keeps_model_errors = False
    """llama-server's own errors pass as they are."""

    cuts_failed_streams = False
    """After the event that tells an error the connection is ended without the stream's own end."""

    def status(self, error: RouterError) -> int:
        """Of the answer that is an error."""
        return error.status

    def body(self, error: RouterError) -> dict[str, Any]:
        """The answer that is an error."""
        return error.body()

    def last_event(self, error: RouterError) -> bytes:
        """The end of a stream of which nothing but its head, and heartbeats, have been sent."""
        return event(self.body(error))

    def heartbeat(self, kind: Heartbeats, text: str) -> bytes:
        """What carries nothing for programs; `text` is for people."""
        if kind is Heartbeats.COMMENTS:
            return comment(text)
        return b"\n" if kind is Heartbeats.BLANK else b""


class _Native(Dialect):
    """llama-server's own paths."""

    keeps_model_errors = True


_ANTHROPIC_TYPES = {
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
        type_ = _ANTHROPIC_TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {**told, "type": type_, "message": _in_its_words(told)}}

    def last_event(self, error: RouterError) -> bytes:
        return event(self.body(error), "error")


def _in_its_words(told: Mapping[str, Any]) -> str:
    """Agents look for these words, and shorten their conversation."""
    message: str = told["message"]
    if told["code"] != "context_length_exceeded" or "n_prompt_tokens" not in told:
        return message
    return f"prompt is too long: {told['n_prompt_tokens']} tokens > {told.get('n_ctx')} maximum; {message}"


class _Responses(Dialect):
    def last_event(self, error: RouterError) -> bytes:
        return event(error_event(error, 0), "error")


def retry_headers(error: RouterError) -> dict[str, str]:
    """What tells a client whether, and when, to try again: the same in all APIs."""
    headers = dict(error.headers)
    if not error.retryable:
        headers["x-should-retry"] = "false"
    elif error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return headers


def error_event(error: RouterError, sequence_number: int) -> dict[str, Any]:
    """As it stands in a stream of the Responses API. The four fields are those of its schema; some clients
    read the object that other APIs have."""
    told = error.body()
    flat = {name: told["error"][name] for name in ("code", "message", "param")}
    return {"type": "error", "sequence_number": sequence_number, **flat, **told}


_OLLAMA_STATUSES = {424: 500, 502: 500}
"""It knows no others for a model that cannot be loaded, or whose process is gone."""


_TOO_LONG = "the input length exceeds the context length"
"""Its clients look for these words."""


class _Ollama(Dialect):
    """Lines of JSON; a line that is none is a mistake to its clients, so nothing is sent while one waits."""

    stream_type = b"application/x-ndjson"
    json_type = b"application/json; charset=utf-8"

    def status(self, error: RouterError) -> int:
        return _OLLAMA_STATUSES.get(error.status, error.status)

    def body(self, error: RouterError) -> dict[str, Any]:
        too_long = error.code == "context_length_exceeded"
        return {"error": f"{_TOO_LONG}: {error.message}" if too_long else error.message}

    def last_event(self, error: RouterError) -> bytes:
        return line(self.body(error))

    def heartbeat(self, kind: Heartbeats, text: str) -> bytes:
        return b""


OPENAI, NATIVE, ANTHROPIC, RESPONSES = Dialect(), _Native(), _Anthropic(), _Responses()
OLLAMA = _Ollama()

_OPENAI_PATHS = frozenset({"chat", "completions", "embeddings", "models"})


@lru_cache(256)
def dialect_of(path: str) -> Dialect:
    """By the path that was asked for, with or without `/v1`, however many slashes there are."""
    parts = [*filter(None, path[:64].split("/")), "", ""]
    is_versioned = parts[0] == "v1"
    first = parts[1] if is_versioned else parts[0]
    if first == "messages":
        return ANTHROPIC
    if first == "responses":
        return RESPONSES
    if first == "api" and parts[1] != "v1":  # that is where others have OpenAI's
        return OLLAMA
    return OPENAI if is_versioned or first in _OPENAI_PATHS else NATIVE
