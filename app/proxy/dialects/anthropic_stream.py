"""Anthropic's Messages API: llama-server leaves out what typed clients need, and what answers have to obey.
Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from app.domain.errors import RouterError
from app.gguf.model_card import ModelCard
from app.llama.llama_server_errors import read_error
from app.proxy.dialects.anthropic_answer import ChatAsMessages, beginning
from app.proxy.dialects.anthropic_errors import ANTHROPIC
from app.proxy.dialects.anthropic_request import as_chat, demanded_tool, names_one_of_many, schema_of
from app.proxy.dialects.json_pieces import text_of
from app.proxy.dialects.named_tools import only
from app.proxy.dialects.sse_format import Event, event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times
from app.proxy.dialects.translators import StreamTranslator

_BLOCK_FIELDS: dict[str, dict[str, Any]] = {"tool_use": {"input": {}}, "thinking": {"signature": ""}}
"""Of a block that begins, by its type."""


CHAT = "/v1/chat/completions"


class MessagesTranslation:
    """Bodies go as they are, unless the answer has to obey a schema, or to call one tool of several."""

    edits = False

    def __init__(self, card_of: Callable[[str], ModelCard | None]) -> None:
        """`card_of`: what is known of a model's file, by its alias."""
        self._card_of = card_of

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def size(self, incoming: Incoming) -> int:
        return len(incoming.body) if self._may_obey(incoming) else 0

    def ask(self, incoming: Incoming) -> Asked:
        """A tool that has to be called is a schema, too, where the model's template knows no tools."""
        if self._may_obey(incoming):
            fields = incoming.all_fields()
            if (schema := schema_of(fields)) is not None:
                return _as_chat(incoming, as_chat(fields, schema, with_tools=True))
            if self._knows_no_tools(incoming) and (tool := demanded_tool(fields)) is not None:
                body = as_chat(fields, tool["input_schema"], with_tools=False)
                return _as_chat(incoming, body, str(tool.get("name")))
            if names_one_of_many(fields):
                kept = only(fields["tools"], [fields["tool_choice"]])
                return _as_it_is(incoming, text_of({**fields, "tools": kept}, len(incoming.body)))
        return _as_it_is(incoming, incoming.body)

    def _may_obey(self, incoming: Incoming) -> bool:
        fields = incoming.fields
        if any(fields.get(name) is not None for name in ("output_config", "output_format")):
            return True
        return fields.get("tool_choice") is not None

    def _knows_no_tools(self, incoming: Incoming) -> bool:
        card = self._card_of(incoming.spec.alias)
        return card is not None and not card.tools


def _as_it_is(incoming: Incoming, body: bytes | bytearray) -> Asked:
    translator = partial(MessagesTranslator, incoming.spec.alias) if incoming.stream else None
    return Asked(body, incoming.stream, translator)


def _as_chat(incoming: Incoming, body: dict[str, Any], demanded: str | None = None) -> Asked:
    text = text_of(body | {"model": incoming.spec.alias}, len(incoming.body))
    translator = partial(ChatAsMessages, incoming.spec.alias, demanded)
    return Asked(text, incoming.stream, translator, CHAT)


class MessagesTranslator(StreamTranslator):
    """Passes events as they are, but for the few that are not whole."""

    def __init__(self, model: str, _times: Times) -> None:
        super().__init__()
        self._model, self._has_begun = model, False

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        return body

    def _error(self, error: RouterError) -> bytes:
        return ANTHROPIC.last_event(error)

    def _translated(self, found: Event) -> bytes:
        if found.name == "error":
            self.failure = read_error(found.data, 200)
            return b""
        self.is_over = self.is_over or found.name == "message_stop"
        whole = _whole_block(found) if found.name == "content_block_start" else found.raw
        if self._has_begun or found.name in _BEFORE_MESSAGES:
            return whole
        self._has_begun = True
        # llama-server leaves it out, and how many tokens it read, where its first one is no whole character.
        return whole if found.name == "message_start" else beginning(self._model) + whole


_BEFORE_MESSAGES = frozenset({"", "ping"})
"""Signs of life."""


def _whole_block(found: Event) -> bytes:
    body = found.json() or {}
    block = body.get("content_block")
    missing = _BLOCK_FIELDS.get(block.get("type", "")) if isinstance(block, dict) else None
    if missing is None or not missing.keys() - block.keys():  # type: ignore[union-attr]
        return found.raw
    whole = {**body, "content_block": {**missing, **block}}  # type: ignore[dict-item]
    return event(whole, found.name, len(found.data))
