"""Anthropic's Messages API: of a stream llama-server leaves out what typed clients need. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from app.domain.errors import RouterError
from app.llama.llama_server_errors import read_error
from app.proxy.dialects.anthropic_errors import ANTHROPIC
from app.proxy.dialects.sse_format import Event, EventReader, event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times

_BLOCK_FIELDS: dict[str, dict[str, Any]] = {"tool_use": {"input": {}}, "thinking": {"signature": ""}}
"""Of a block that begins, by its type."""


class MessagesTranslation:
    """Bodies go as they are."""

    edits = False

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def size(self, incoming: Incoming) -> int:
        return 0

    def ask(self, incoming: Incoming) -> Asked:
        if not incoming.stream:
            return Asked(incoming.body, stream=False)
        return Asked(incoming.body, True, partial(MessagesTranslator, incoming.spec.alias))


class MessagesTranslator:
    """Passes events as they are, but for the few that are not whole."""

    def __init__(self, model: str, _times: Times) -> None:
        self.failure: RouterError | None = None
        self._model, self._has_begun = model, False
        self._reader = EventReader()

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        return body

    def done(self) -> None:
        """Nothing is left."""

    @property
    def waiting(self) -> int:
        return self._reader.waiting

    held = waiting

    def feed(self, data: bytes) -> bytes:
        return b"".join([self._translated(found) for found in self._reader.feed(data)])

    def end(self) -> bytes:
        return b"".join([self._translated(found) for found in self._reader.end()])

    def fail(self, error: RouterError) -> bytes:
        return ANTHROPIC.last_event(error)

    def _translated(self, found: Event) -> bytes:
        if found.name == "error":
            self.failure = read_error(found.data, 200)
            return b""
        whole = _whole_block(found) if found.name == "content_block_start" else found.raw
        if self._has_begun or found.name in _BEFORE_MESSAGES:
            return whole
        self._has_begun = True
        return whole if found.name == "message_start" else _beginning(self._model) + whole


_BEFORE_MESSAGES = frozenset({"", "ping"})
"""Signs of life."""


def _beginning(model: str) -> bytes:
    """llama-server leaves it out, and how many tokens it read, where its first one is no whole character."""
    message: dict[str, Any] = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    return event({"type": "message_start", "message": message}, "message_start")


def _whole_block(found: Event) -> bytes:
    body = found.json() or {}
    block = body.get("content_block")
    missing = _BLOCK_FIELDS.get(block.get("type", "")) if isinstance(block, dict) else None
    if missing is None or not missing.keys() - block.keys():  # type: ignore[union-attr]
        return found.raw
    whole = {**body, "content_block": {**missing, **block}}  # type: ignore[dict-item]
    return event(whole, found.name, len(found.data))
