"""OpenAI's Responses API: llama-server's own, made whole. Pure, but for the responses that are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic_core import to_json

from app.domain.errors import BadRequest, ModelCrashed, RouterError
from app.llama.error_answers import read_error
from app.proxy.dialects.errors_and_heartbeats import error_event
from app.proxy.dialects.responses.items import Item, as_items, resolved
from app.proxy.dialects.responses.request import as_asked, given
from app.proxy.dialects.responses.response_object import Frame, whole_item
from app.proxy.dialects.responses.stored_responses import StoredResponses, packed
from app.proxy.dialects.responses.stream import EventWriter
from app.proxy.dialects.sse_format import Event, EventReader, as_json, event, object_in
from app.proxy.dialects.translation_interface import Asked, Incoming, Times

Keep = Callable[[dict[str, Any]], None]


class TokensTranslation:
    """`/v1/responses/input_tokens`: the same input, of which only the tokens are counted."""

    edits = True

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def ask(self, incoming: Incoming) -> Asked:
        fields = given(incoming.fields)
        return Asked(self._body(incoming, fields, self._items(incoming, fields)), stream=False)

    def _body(
        self, incoming: Incoming, fields: dict[str, Any], items: list[Item] | None
    ) -> bytes | bytearray:
        asked = as_asked(fields, items)
        return incoming.body if asked == incoming.fields else to_json(asked)

    def _items(self, incoming: Incoming, fields: dict[str, Any]) -> list[Item] | None:
        """None for a text, with nothing before it."""
        owner, previous = incoming.owner, fields.get("previous_response_id")
        if "input" not in fields and previous is None:
            return None  # llama-server says so
        if previous is None and isinstance(fields["input"], str):
            return None
        earlier = []
        if previous is not None:
            if not isinstance(previous, str):
                raise BadRequest("'previous_response_id' must be a text", param="previous_response_id")
            earlier = self._stored.find(owner, previous).conversation()
        return earlier + resolved(as_items(fields.get("input", [])), partial(self._stored.item, owner))


class ResponsesTranslation(TokensTranslation):
    """`/v1/responses`."""

    def ask(self, incoming: Incoming) -> Asked:
        fields = given(incoming.fields)
        items = self._items(incoming, fields)
        is_stored = self._stored.is_on and fields.get("store") is not False
        context = incoming.spec.params.n_ctx
        frame = Frame(fields, incoming.spec.alias, context, incoming.now, stored=is_stored)
        keep = self._keep(incoming.owner, fields, items) if is_stored else _forget
        body = self._body(incoming, fields, items)
        return Asked(body, incoming.stream, partial(ResponsesTranslator, frame, keep))

    def _keep(self, owner: str, fields: dict[str, Any], items: list[Item] | None) -> Keep:
        """Text until it is stored, too: as objects the items would take several times as much meanwhile."""
        given = as_items(fields.get("input", [])) if items is None else items
        return partial(self._stored.keep, owner, items=packed(given))


def _forget(response: dict[str, Any]) -> None:
    """It is not to be stored."""


class ResponsesTranslator:
    def __init__(self, frame: Frame, keep: Keep, _times: Times) -> None:
        self.failure: RouterError | None = None
        self._frame, self._keep = frame, keep
        self._reader, self._writer = EventReader(), EventWriter(frame)

    def whole(self, body: bytes) -> bytes:
        """What is no response passes as it is: nothing is known of it."""
        told = object_in(body)
        if told is None or not isinstance(told.get("id"), str):
            return body
        response = self._frame.finished(told, [whole_item(item) for item in told.get("output", ())])
        self._keep(response)
        return as_json(response)

    def feed(self, data: bytes) -> bytes:
        return b"".join([self._translated(found) for found in self._reader.feed(data)])

    def end(self) -> bytes:
        rest = b"".join([self._translated(found) for found in self._reader.end()])
        if not self._writer.is_over and self.failure is None:
            self.failure = ModelCrashed("llama-server ended its answer before it was complete; send it again")
        return rest

    def fail(self, error: RouterError) -> bytes:
        if self._writer.is_over:
            return b""
        if self._writer.has_begun:
            return _written(self._writer.fail(error.message))
        return event(error_event(error, self._writer.next_number()), "error")

    def _translated(self, found: Event) -> bytes:
        told = found.json()
        if told is None or self._writer.is_over:
            return b""
        if "error" in told and "type" not in told:
            self.failure = read_error(found.data, 200)
            return b""
        events = self._writer.take(told)
        if self._writer.is_over:
            self._keep(self._writer.response)
        return _written(events)


def _written(events: list[dict[str, Any]]) -> bytes:
    return b"".join([event(body, body["type"]) for body in events])
