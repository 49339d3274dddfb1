"""The events of a response, whole and in the order of the schema. Pure.

llama-server tells items and pieces of text as they come, but ends all of them together, at the end of the
answer, and leaves out numbers and indexes. Here an item ends when the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.domain.errors import RouterError
from app.proxy.dialects.json_pieces import joined_text
from app.proxy.dialects.responses.items import Item
from app.proxy.dialects.responses.response_object import Frame, whole_item, whole_part
from app.proxy.dialects.translation_interface import OBJECT_BYTES

Body = dict[str, Any]

_PART_TYPES = {"message": "output_text", "reasoning": "reasoning_text"}
_TEXT_DONE = {
    "message": "response.output_text.done",
    "reasoning": "response.reasoning_text.done",
    "function_call": "response.function_call_arguments.done",
}
_TEXT_FIELD = {"function_call": "arguments"}

MUCH_TEXT = 262144
"""Characters of an item. Its end writes three times as many: up to here that takes a few milliseconds."""


class _OpenItem:
    """An item of the output while it comes."""

    def __init__(self, item: Item, index: int) -> None:
        self.item, self.index = item, index
        self.type: str = item.get("type", "")
        self.text: list[str] = []
        self.size = 0
        self.has_part = False

    @property
    def place(self) -> Body:
        return {"item_id": self.item.get("id", ""), "output_index": self.index}

    @property
    def part_place(self) -> Body:
        return self.place if self.type == "function_call" else {**self.place, "content_index": 0}

    def ended(self, told: Item) -> Item:
        """`told`: how llama-server tells it at the end, if it has."""
        if told:
            return whole_item({**self.item, "status": "completed", **told})
        text = joined_text(self.text)
        if self.type == "function_call":
            return {**self.item, "arguments": text, "status": "completed"}
        part = whole_part({"type": _PART_TYPES.get(self.type, "output_text"), "text": text})
        return {**self.item, "content": [part], "status": "completed"}


class EventWriter:
    """Takes llama-server's events, gives those that the client gets: names and bodies, numbered."""

    def __init__(self, frame: Frame) -> None:
        self.response: Body = {}
        """The last state of it that was told."""
        self.has_begun = self.is_over = False
        self.held_bytes = 0
        """Of what has come, about."""
        self._frame = frame
        self._told: Body = {}
        self._output: dict[str, Item] = {}
        self._open: _OpenItem | None = None
        self._number = -1
        self._events: list[Body] = []

    def take(self, told: Body) -> list[Body]:
        """An event that llama-server tells; those of the client, none or several."""
        take = _TAKES.get(str(told.get("type")))
        if take is not None:
            take(self, told)
        elif "type" in told:
            self._put(told)
        return self._given()

    def fail(self, error: RouterError) -> list[Body]:
        """A response that has begun ends here.

        OpenAI's own libraries raise what stands in `error`; several programs that are built on them overlook
        this event, and took what had come for the whole answer.
        """
        if self._open is not None:
            item = self._open.ended({})
            self._output[self._open.place["item_id"]] = {**item, "status": "incomplete"}
        response = self._frame.failed(self._told, list(self._output.values()), error.message)
        self._end("failed", response, error.body())
        return self._given()

    @property
    def to_repeat(self) -> int:
        """Characters that the end of an item tells once more, where they are many: any event may end it."""
        return 0 if self._open is None or self._open.size <= MUCH_TEXT else self._open.size

    def next_number(self) -> int:
        self._number += 1
        return self._number

    # --- llama-server's events

    def _on_begin(self, told: Body) -> None:
        """llama-server tells it again with every piece where its first token was no whole character."""
        is_known = self.has_begun if told["type"] == "response.created" else self._open or self._output
        if is_known:
            return
        self.has_begun, self._told = True, told.get("response", {})
        self.response = self._frame.begun(self._told)
        self._put({**told, "response": self.response})

    def _on_item(self, told: Body) -> None:
        self._close({})
        item = whole_item(told.get("item", {}), "in_progress")
        self._open = _OpenItem(item, len(self._output))
        self._put({**told, "output_index": self._open.index, "item": item})

    def _on_part(self, told: Body) -> None:
        if self._open is not None and not self._open.has_part:
            self._add_part(told)

    def _on_delta(self, told: Body) -> None:
        current = self._open
        if current is None:
            return
        if current.type in _PART_TYPES and not current.has_part:
            self._add_part({"type": "response.content_part.added"})
        delta = told.get("delta", "")
        current.text.append(delta)
        current.size += len(delta)
        self.held_bytes += len(delta) + OBJECT_BYTES
        logprobs: Body = {"logprobs": []} if current.type == "message" else {}
        self._put({**logprobs, **told, **current.part_place})

    def _swallow(self, told: Body) -> None:
        """It is told again with the end of its item."""

    def _on_item_done(self, told: Body) -> None:
        item = told.get("item", {})
        name = item.get("id", "")
        if name in self._output:  # it has ended for the client
            return
        if self._open is None or self._open.place["item_id"] != name:
            self._on_item({"type": "response.output_item.added", "item": item})
        self._close(item)

    def _on_end(self, told: Body) -> None:
        self._close({})
        self._told = told.get("response", {})
        at_the_end = {item.get("id"): whole_item(item) for item in self._told.get("output", ())}
        output = [at_the_end.get(name, item) for name, item in self._output.items()]
        response = self._frame.finished(self._told, output)
        self._end(response["status"], response, told)

    # --- the client's

    def _add_part(self, told: Body) -> None:
        current = self._open
        assert current is not None
        current.has_part = True
        empty = {"type": _PART_TYPES.get(current.type, "output_text"), "text": ""}
        part = whole_part({**empty, **told.get("part", {})})
        self._put({**told, **current.part_place, "part": part})

    def _close(self, told: Item) -> None:
        current, self._open = self._open, None
        if current is None:
            return
        item = current.ended(told)
        self._output[current.place["item_id"]] = item
        if current.type in _TEXT_DONE:
            text = item["arguments"] if current.type == "function_call" else _text_of(item)
            logprobs: Body = {"logprobs": []} if current.type == "message" else {}
            field = _TEXT_FIELD.get(current.type, "text")
            self._put({"type": _TEXT_DONE[current.type], **current.part_place, **logprobs, field: text})
        if current.has_part and item.get("content"):
            part = item["content"][0]
            self._put({"type": "response.content_part.done", **current.part_place, "part": part})
        self._put({"type": "response.output_item.done", "output_index": current.index, "item": item})

    def _end(self, status: str, response: Body, told: Body) -> None:
        self.response, self.is_over = response, True
        self._put({**told, "type": f"response.{status}", "response": response})

    def _put(self, body: Body) -> None:
        self._events.append({**body, "sequence_number": self.next_number()})

    def _given(self) -> list[Body]:
        events, self._events = self._events, []
        return events


def _text_of(item: Item) -> str:
    return "".join(part.get("text", "") for part in item.get("content", ()))


_TAKES: dict[str, Callable[[EventWriter, Body], None]] = {
    "response.created": EventWriter._on_begin,
    "response.in_progress": EventWriter._on_begin,
    "response.output_item.added": EventWriter._on_item,
    "response.content_part.added": EventWriter._on_part,
    "response.output_text.delta": EventWriter._on_delta,
    "response.reasoning_text.delta": EventWriter._on_delta,
    "response.function_call_arguments.delta": EventWriter._on_delta,
    "response.output_text.done": EventWriter._swallow,
    "response.content_part.done": EventWriter._swallow,
    "response.output_item.done": EventWriter._on_item_done,
    "response.completed": EventWriter._on_end,
}
"""By the event's type. Bound to a writer, it and they would hold each other."""
