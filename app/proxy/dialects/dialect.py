"""How an API tells what is no answer: errors, before and after the head, and that it still waits. Pure."""

from __future__ import annotations

from typing import Any

from app.domain.config_types import Heartbeats
from app.domain.errors import RouterError
from app.proxy.dialects.sse_format import comment, event


class Dialect:
    """What most APIs have of OpenAI's chat completions. Each overrides what differs."""

    stream_type = b"text/event-stream"
    """Of a stream whose head is sent before llama-server's."""

    json_type = b"application/json"
    """Of what the router answers by itself."""

    keeps_model_errors = False
    """llama-server's own errors pass as they are."""

    cuts_failed_streams = False
    """After the event that tells an error the connection is ended without the end of the body."""

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


class _OpenAi(Dialect):
    """Some clients overlook an event that is an error, and take what ends well for a whole answer. The others
    still tell the error. Nobody overlooks an event that has a name of its own, as in other APIs."""

    cuts_failed_streams = True


class _Native(Dialect):
    """llama-server's own paths."""

    keeps_model_errors = True


def retry_headers(error: RouterError) -> dict[str, str]:
    """What tells a client whether, and when, to try again: the same in all APIs."""
    headers = dict(error.headers)
    if not error.retryable:
        headers["x-should-retry"] = "false"
    elif error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return headers


OPENAI, NATIVE = _OpenAi(), _Native()
