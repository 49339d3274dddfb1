"""Anthropic's Messages API: of a stream llama-server leaves out what typed clients need. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.errors import RouterError
from app.llama.error_answers import read_error
from app.proxy.dialects.events import Event, EventReader, event
from app.proxy.dialects.translation import Asked, Incoming, Times
from app.proxy.dialects.voice import ANTHROPIC

_BLOCK_FIELDS: dict[str, dict[str, Any]] = {"tool_use": {"input": {}}, "thinking": {"signature": ""}}
"""Of a block that begins, by its type."""


class MessagesTranslation:
    """Bodies go as they are."""

    edits = False

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def ask(self, incoming: Incoming) -> Asked:
        return Asked(incoming.body, incoming.stream, MessagesTranslator)


class MessagesTranslator:
    """Passes events as they are, but for the few that are not whole."""

    def __init__(self, _times: Times) -> None:
        self.failure: RouterError | None = None
        self._reader = EventReader()

    def whole(self, body: bytes) -> bytes:
        return body

    def feed(self, data: bytes) -> bytes:
        return b"".join([self._translated(found) for found in self._reader.feed(data)])

    def end(self) -> bytes:
        return b"".join([self._translated(found) for found in self._reader.end()])

    def fail(self, error: RouterError) -> bytes:
        return ANTHROPIC.last_event(error)

    def _translated(self, found: Event) -> bytes:
        if found.name == "content_block_start":
            return _whole_block(found)
        if found.name == "error":
            self.failure = read_error(found.data, 200)
            return b""
        return found.raw


def _whole_block(found: Event) -> bytes:
    body = found.json() or {}
    block = body.get("content_block")
    missing = _BLOCK_FIELDS.get(block.get("type", "")) if isinstance(block, dict) else None
    if missing is None or not missing.keys() - block.keys():  # type: ignore[union-attr]
        return found.raw
    return event({**body, "content_block": {**missing, **block}}, found.name)  # type: ignore[dict-item]
