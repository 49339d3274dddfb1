"""An answer of chat completions in the words of Anthropic's Messages API. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from app.domain.errors import RouterError
from app.proxy.dialects import llama_answers
from app.proxy.dialects.anthropic_errors import ANTHROPIC
from app.proxy.dialects.function_calls import Calls
from app.proxy.dialects.json_pieces import let_go
from app.proxy.dialects.llama_answers import Piece
from app.proxy.dialects.sse_format import as_json, event, in_pieces, object_in
from app.proxy.dialects.translation_interface import Times
from app.proxy.dialects.translators import StreamTranslator

Body = dict[str, Any]

_of_chat = partial(llama_answers.of_chat, 0)


def new_message(model: str) -> Body:
    """Without a word yet."""
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def beginning(model: str) -> bytes:
    """The first event of a stream."""
    return event({"type": "message_start", "message": new_message(model)}, "message_start")


class ChatAsMessages(StreamTranslator):
    """Where a tool is `demanded`, the text of the answer is what it is called with."""

    def __init__(self, model: str, demanded: str | None, _times: Times) -> None:
        super().__init__()
        self._model, self._demanded, self._calls = model, demanded, Calls()
        self._has_begun = self._has_called = False
        self._index, self._open, self._size = -1, "", 0

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        """What is no answer passes as it is: nothing is known of it."""
        told = object_in(body)
        if told is None or "choices" not in told:
            return body
        piece = _of_chat(told)
        calls = self._calls.take(piece.calls) + self._calls.rest()
        blocks = self._blocks(piece, calls)
        answer = new_message(self._model) | {"content": blocks} | self._end_of(piece)
        text = in_pieces(answer, len(body))
        let_go(told)
        return text

    # --- whole

    def _blocks(self, piece: Piece, calls: Sequence[Mapping[str, Any]]) -> list[Body]:
        thought = [{**_THINKING, "thinking": piece.thinking}] if piece.thinking else []
        said: list[Body] = []
        if self._demanded is not None:
            said = [self._use({"input": object_in(piece.text.encode("utf-8", "surrogatepass")) or {}})]
        elif piece.text:
            said = [{"type": "text", "text": piece.text}]
        return [*thought, *said, *(self._use(_called(call)) for call in calls)]

    def _use(self, more: Body) -> Body:
        self._has_called = True
        id_ = f"toolu_{uuid.uuid4().hex}"
        return {"type": "tool_use", "id": id_, "name": self._demanded, "input": {}, **more}

    def _end_of(self, piece: Piece) -> Body:
        reason = "max_tokens" if piece.reason == "length" else "tool_use" if self._has_called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None, "usage": _usage(piece.timings)}

    # --- event by event

    def _events(self, told: Body, size: int) -> bytes:
        begin = b"" if self._has_begun else beginning(self._model)
        self._has_begun, self._size = True, size
        return begin + b"".join(self._told(_of_chat(told)))

    def _error(self, error: RouterError) -> bytes:
        return ANTHROPIC.last_event(error)

    def _told(self, piece: Piece) -> list[bytes]:
        events = []
        if piece.thinking:
            events += self._add(_THINKING, {"type": "thinking_delta", "thinking": piece.thinking})
        if piece.text and self._demanded is not None:
            events += self._add(self._use({}), {"type": "input_json_delta", "partial_json": piece.text})
        elif piece.text:
            events += self._add({"type": "text", "text": ""}, {"type": "text_delta", "text": piece.text})
        calls = self._calls.take(piece.calls)
        if piece.reason is not None:
            calls += self._calls.rest()
        for call in calls:
            use = _called(call)
            text = as_json(use.pop("input")).decode()
            events += self._close()
            events += self._add(self._use(use), {"type": "input_json_delta", "partial_json": text})
        if piece.reason is not None:
            self.is_over = True
            events += [*self._close(), *self._last(piece)]
        return events

    def _add(self, block: Body, delta: Body) -> list[bytes]:
        """To the block of this type that is open, or to a new one."""
        events = []
        if self._open != block["type"]:
            events = self._close()
            self._index, self._open = self._index + 1, block["type"]
            events.append(self._at("content_block_start", {"content_block": block}))
        return [*events, self._at("content_block_delta", {"delta": delta})]

    def _close(self) -> list[bytes]:
        was_open, self._open = self._open, ""
        return [self._at("content_block_stop", {})] if was_open else []

    def _at(self, name: str, body: Body) -> bytes:
        return event({"type": name, "index": self._index, **body}, name, self._size)

    def _last(self, piece: Piece) -> list[bytes]:
        end = self._end_of(piece)
        usage = end.pop("usage")
        told = {"type": "message_delta", "delta": end, "usage": usage}
        return [event(told, "message_delta"), event({"type": "message_stop"}, "message_stop")]


_THINKING: Body = {"type": "thinking", "thinking": "", "signature": ""}


def _called(call: Mapping[str, Any]) -> Body:
    function = call["function"]
    named = {"name": function["name"], "input": function["arguments"]}
    return {"id": call["id"], **named} if call["id"] else named


def _usage(timings: Mapping[str, Any]) -> Body:
    """Anthropic counts apart what came from the cache."""
    return {
        "input_tokens": timings.get("prompt_n", 0),
        "cache_read_input_tokens": timings.get("cache_n", 0),
        "output_tokens": timings.get("predicted_n", 0),
    }
