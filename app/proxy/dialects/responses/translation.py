"""OpenAI's Responses API: llama-server's own, made whole. Pure, but for the responses that are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from app.domain.errors import BadRequest, RequestTooLarge, RouterError
from app.proxy.dialects.json_pieces import PIECE, let_go, text_of, written
from app.proxy.dialects.responses.items import Item, as_items, refers, resolved
from app.proxy.dialects.responses.request import as_asked, given
from app.proxy.dialects.responses.response_object import MOST_ECHOED, Frame, echoed, whole_item
from app.proxy.dialects.responses.responses_errors import error_event
from app.proxy.dialects.responses.stored_responses import Items, Stored, StoredResponses, packed, to_store
from app.proxy.dialects.responses.stream import EventWriter
from app.proxy.dialects.sse_format import as_json, event, object_in, write_event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times
from app.proxy.dialects.translators import StreamTranslator


class TokensTranslation:
    """`/v1/responses/input_tokens`: the same input, of which only the tokens are counted."""

    edits = True

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def size(self, incoming: Incoming) -> int:
        """What it refers to counts as if it stood there; in a large one it is not looked for."""
        size = len(incoming.body)
        return size if size > PIECE else size + sum(self._referred(incoming))

    def ask(self, incoming: Incoming) -> Asked:
        fields = given(incoming.fields)
        return Asked(self._body(incoming, fields, self._items(incoming, fields)), stream=False)

    def _body(
        self, incoming: Incoming, fields: dict[str, Any], items: list[Item] | None
    ) -> bytes | bytearray:
        asked = as_asked(fields, items)
        return incoming.body if asked == incoming.fields else text_of(asked, self.size(incoming))

    def _items(self, incoming: Incoming, fields: dict[str, Any]) -> list[Item] | None:
        """None for a text, with nothing before it."""
        self._check_size(incoming)
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

    def _check_size(self, incoming: Incoming) -> None:
        left = incoming.most_bytes - len(incoming.body)
        for size in self._referred(incoming):
            left -= size
            if left < 0:
                raise RequestTooLarge(
                    f"with what it refers to the request has more than {incoming.most_bytes} bytes "
                    "(api.max_body_mb): refer to less"
                )

    def _referred(self, incoming: Incoming) -> Iterator[int]:
        """Bytes of each thing that it refers to and that is stored."""
        owner, given = incoming.owner, incoming.fields.get("input")
        previous = incoming.fields.get("previous_response_id")
        if isinstance(previous, str):
            yield self._stored.conversation_bytes(owner, previous)
        for item in given if isinstance(given, list) else ():
            if refers(item) and isinstance(name := item.get("id"), str):
                yield len(self._stored.item(owner, name) or b"")


class ResponsesTranslation(TokensTranslation):
    """`/v1/responses`."""

    def ask(self, incoming: Incoming) -> Asked:
        fields = given(incoming.fields)
        items = self._items(incoming, fields)
        is_stored = self._stored.is_on and fields.get("store") is not False
        context = incoming.spec.params.n_ctx
        echo = echoed(fields) if len(incoming.body) > MOST_ECHOED else fields
        frame = Frame(echo, incoming.spec.alias, context, incoming.now, stored=is_stored)
        keep = self._keep(incoming.owner, fields, items) if is_stored else None
        body = self._body(incoming, fields, items)
        kept = min(len(incoming.body), MOST_ECHOED) + (keep.size if keep is not None else 0)
        return Asked(body, incoming.stream, partial(ResponsesTranslator, frame, keep), kept_bytes=kept)

    def _keep(self, owner: str, fields: dict[str, Any], items: list[Item] | None) -> Keep:
        """Text until it is stored, too: as objects the items would take several times as much meanwhile."""
        given = as_items(fields.get("input", [])) if items is None else items
        return Keep(partial(self._stored.keep, owner), packed(given))


class Keep(NamedTuple):
    """Where an answer is stored, and what was asked."""

    entry: Callable[[Stored], None]
    items: Items

    @property
    def size(self) -> int:
        return sum(len(text) for _, text in self.items)


class ResponsesTranslator(StreamTranslator):
    def __init__(self, frame: Frame, keep: Keep | None, _times: Times) -> None:
        super().__init__()
        self._frame, self._keep = frame, keep
        self._to_store: Stored | None = None
        self._writer = EventWriter(frame)

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        """What is no response passes as it is: nothing is known of it."""
        told = object_in(body)
        if told is None or not isinstance(told.get("id"), str):
            return body
        response = self._frame.finished(told, [whole_item(item) for item in told.get("output", ())])
        self._packs(response)
        text = written(response, as_json)
        let_go(told)
        return text

    def done(self) -> None:
        entry, self._to_store = self._to_store, None
        if entry is not None and self._keep is not None:
            self._keep.entry(entry)

    def _packs(self, response: dict[str, Any]) -> None:
        if self._keep is not None:
            self._to_store = to_store(response, self._keep.items)

    @property
    def held(self) -> int:
        return super().held + self._writer.held_bytes

    def _error(self, error: RouterError) -> bytes:
        if self._writer.has_begun:
            return bytes(_written(self._writer.fail(error)))
        return event(error_event(error, self._writer.next_number()), "error")

    @property
    def waiting(self) -> int:
        return super().waiting + self._writer.to_repeat

    def _events(self, told: dict[str, Any], size: int) -> bytes | bytearray:
        size += self._writer.to_repeat
        events = self._writer.take(told)
        if self._writer.is_over:
            self.is_over = True
            self._packs(self._writer.response)
        return _written(events, size)


def _written(events: list[dict[str, Any]], size: int = 0) -> bytes | bytearray:
    """`size`: of the largest, about."""
    if size <= PIECE:
        return b"".join([event(body, body["type"]) for body in events])
    text = bytearray()
    for body in events:
        write_event(text, body, body["type"])
    return text
