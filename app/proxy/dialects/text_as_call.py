"""An answer of chat completions whose text is what the demanded function is called with. Pure."""

from __future__ import annotations

import secrets
from typing import Any

from app.domain.errors import RouterError
from app.proxy.dialects.dialect import OPENAI
from app.proxy.dialects.json_pieces import let_go
from app.proxy.dialects.sse_format import Event, event, in_pieces, object_in
from app.proxy.dialects.translation_interface import Times
from app.proxy.dialects.translators import StreamTranslator

Body = dict[str, Any]

_END = b"[DONE]"


class TextAsCall(StreamTranslator):
    """All else that llama-server says passes."""

    def __init__(self, name: str, _times: Times) -> None:
        super().__init__()
        self._name = name
        self._begun: set[object] = set()
        """Choices that have called."""

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        """What is no answer passes as it is: nothing is known of it."""
        told = object_in(body)
        if told is None or "choices" not in told:
            return body
        for choice in told["choices"]:
            _call_with(choice["message"], self._begin)
            _end_with_call(choice)
        text = in_pieces(told, len(body))
        let_go(told)
        return text

    def _translated(self, found: Event) -> bytes:
        if found.data == _END:
            self.is_over = True
            return found.raw
        return super()._translated(found)

    def _events(self, told: Body, size: int) -> bytes:
        for choice in told.get("choices", ()):
            index = choice.get("index")
            has_begun = index in self._begun
            if _call_with(choice.get("delta", {}), self._go_on if has_begun else self._begin, index=0):
                self._begun.add(index)
            _end_with_call(choice)
        return event(told, size=size)

    def _error(self, error: RouterError) -> bytes:
        return OPENAI.last_event(error)

    def _begin(self, text: str) -> Body:
        function = {"name": self._name, "arguments": text}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}

    def _go_on(self, text: str) -> Body:
        return {"function": {"arguments": text}}


def _call_with(message: Body, call: Any, **more: Any) -> bool:
    """Whether it says something."""
    text = message.get("content")
    if not isinstance(text, str) or not text:
        return False
    message |= {"content": None, "tool_calls": [{**more, **call(text)}]}
    return True


def _end_with_call(choice: Body) -> None:
    if choice.get("finish_reason") == "stop":
        choice["finish_reason"] = "tool_calls"
