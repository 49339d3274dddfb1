"""Responses that were given, for the requests that refer to them: in memory, bounded, each key's its own.

They are found from the thread that translates large requests, too: every step of it is one operation of a
dict. They are stored and dropped on the event loop only.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from pydantic_core import to_json

from app.domain.errors import NotFound, RouterError
from app.proxy.dialects.json_pieces import object_of, written
from app.proxy.dialects.responses.items import Item

OVERHEAD_BYTES = 1024
"""What an entry takes beside its text, about."""


class Room(Protocol):
    """The memory for all that is held for clients."""

    def take(self, size: int) -> None:
        """Raises a `RouterError` where there is none."""

    def give_back(self, size: int, data: bytes | bytearray) -> None:
        """`data`: what was held."""


Text = bytes | bytearray
Items = tuple[tuple[str, Text], ...]
"""Ids and texts."""


class Stored(NamedTuple):
    """Of one response. Kept as text: objects would take several times as much."""

    name: str
    frame: Text
    """All but the output."""
    output: Items
    items: Items
    """All that it was given, what it referred to included."""
    conversation_bytes: int
    """Of both."""

    @property
    def size(self) -> int:
        return OVERHEAD_BYTES + len(self.frame) + self.conversation_bytes

    def text(self) -> Iterator[Text]:
        """The response, in pieces."""
        yield self.frame[:-1] + b',"output":['
        yield from listed(text for _, text in self.output)
        yield b"]}"

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(b"".join(self.text()))
        return body

    def input_items(self) -> list[Item]:
        return [object_of(text) for _, text in self.items]

    def conversation(self) -> list[Item]:
        """What a request that goes on from it begins with."""
        return [*self.input_items(), *(object_of(text) for _, text in self.output)]


def listed(texts: Iterable[Text]) -> Iterator[Text]:
    """What stands between the brackets."""
    for place, text in enumerate(texts):
        if place:
            yield b","
        yield text


def to_store(response: Mapping[str, Any], items: Items) -> Stored:
    """`items`: all of its input, `packed`."""
    frame = {name: value for name, value in response.items() if name != "output"}
    output = packed(response["output"])
    size = sum(len(text) for _, text in (*output, *items))
    return Stored(response["id"], written(frame, to_json), output, items, size)


class StoredResponses:
    """The one that was used last goes last. Nothing is stored with a limit of 0."""

    def __init__(self, limit_bytes: int, room: Room) -> None:
        self.used_bytes = 0
        self._limit_bytes, self._room = limit_bytes, room
        self._kept: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._homes: dict[tuple[str, str], str] = {}
        """The response in which an item was given, by key and item."""

    @property
    def is_on(self) -> bool:
        return self._limit_bytes > 0

    def limit(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._drop_over(limit_bytes)

    def keep(self, owner: str, entry: Stored) -> None:
        """What is larger than all the room is not kept."""
        if entry.size > self._limit_bytes:
            return
        self._drop_over(self._limit_bytes - entry.size)
        try:
            self._room.take(entry.size)
        except RouterError:  # more is asked for at once than there is room for
            return
        if (before := self._kept.pop((owner, entry.name), None)) is not None:
            self._forget(owner, before)
        self._kept[owner, entry.name] = entry
        self.used_bytes += entry.size
        for item, _ in entry.output:
            self._homes[owner, item] = entry.name

    def free(self, wanted: int) -> None:
        """So many bytes, if there are so many, of what was used longest ago."""
        self._drop_over(self.used_bytes - wanted)

    def find(self, owner: str, name: str) -> Stored:
        """Raises `NotFound`."""
        entry = self._kept.get((owner, name))
        if entry is None:
            raise NotFound(
                f"the response {name[:80]!r} is not stored here for this key: it never was, was deleted, "
                "made room for newer ones (api.stored_responses_mb), or the router was restarted; send the "
                "whole conversation as 'input'"
            )
        with contextlib.suppress(KeyError):  # dropped since
            self._kept.move_to_end((owner, name))
        return entry

    def conversation_bytes(self, owner: str, name: str) -> int:
        """0: it is not stored."""
        entry = self._kept.get((owner, name))
        return 0 if entry is None else entry.conversation_bytes

    def item(self, owner: str, name: str) -> Text | None:
        """An item of a response's output."""
        home = self._homes.get((owner, name))
        return None if home is None else dict(self.find(owner, home).output)[name]

    def delete(self, owner: str, name: str) -> None:
        """Raises `NotFound`."""
        self.find(owner, name)
        self._forget(owner, self._kept.pop((owner, name)))

    def _drop_over(self, limit_bytes: int) -> None:
        while self._kept and self.used_bytes > limit_bytes:
            (owner, _), entry = self._kept.popitem(last=False)
            self._forget(owner, entry)

    def _forget(self, owner: str, entry: Stored) -> None:
        self.used_bytes -= entry.size
        self._room.give_back(entry.size, b"")
        for item, _ in entry.output:
            self._homes.pop((owner, item), None)


def packed(items: Iterable[Item]) -> Items:
    """As they are stored, each with an id."""
    named = ({"id": _new_id(item), **item} for item in items)
    return tuple((str(item["id"]), written(item, to_json)) for item in named)


_PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _new_id(item: Item) -> str:
    type_ = item.get("type")
    prefix = _PREFIXES.get(type_, "msg") if isinstance(type_, str) else "msg"
    return f"{prefix}_{uuid.uuid4().hex}"
