"""Responses that were given, for the requests that refer to them: in memory, bounded, each key's its own."""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

from app.domain.errors import NotFound
from app.proxy.dialects.responses.items import Item
from app.proxy.dialects.sse_format import as_json

OVERHEAD_BYTES = 1024
"""What an entry takes beside its text, about."""


class Stored(NamedTuple):
    """Of one response. Kept as text: objects would take several times as much."""

    response: bytes
    items: tuple[bytes, ...]
    """All that it was given, what it referred to included."""

    @property
    def size(self) -> int:
        return OVERHEAD_BYTES + len(self.response) + sum(map(len, self.items))

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.response)
        return body

    def input_items(self) -> list[Item]:
        return [json.loads(item) for item in self.items]

    def conversation(self) -> list[Item]:
        """What a request that goes on from it begins with."""
        return [*self.input_items(), *self.body()["output"]]


class StoredResponses:
    """The one that was used last goes last. Nothing is stored with a limit of 0."""

    def __init__(self, limit_bytes: int) -> None:
        self.used_bytes = 0
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._homes: dict[tuple[str, str], str] = {}
        """The response in which an item was given, by key and item."""

    @property
    def is_on(self) -> bool:
        return self._limit_bytes > 0

    def limit(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._make_room(0)

    def keep(self, owner: str, response: dict[str, Any], items: tuple[bytes, ...]) -> None:
        """`items`: all of its input, `packed`. What is larger than all the room is not kept."""
        entry = Stored(as_json(response), items)
        if entry.size > self._limit_bytes:
            return
        self._make_room(entry.size)
        self._kept[owner, response["id"]] = entry
        self.used_bytes += entry.size
        for item in response["output"]:
            self._homes[owner, item["id"]] = response["id"]

    def find(self, owner: str, name: str) -> Stored:
        """Raises `NotFound`."""
        entry = self._kept.get((owner, name))
        if entry is None:
            raise NotFound(
                f"the response {name[:80]!r} is not stored here for this key: it never was, was deleted, "
                "made room for newer ones (api.stored_responses_mb), or the router was restarted; send the "
                "whole conversation as 'input'"
            )
        self._kept.move_to_end((owner, name))
        return entry

    def item(self, owner: str, name: str) -> Item | None:
        """An item of a response's output."""
        home = self._homes.get((owner, name))
        if home is None:
            return None
        output: list[Item] = self.find(owner, home).body()["output"]
        return next(item for item in output if item["id"] == name)

    def delete(self, owner: str, name: str) -> None:
        """Raises `NotFound`."""
        self.find(owner, name)
        self._drop((owner, name))

    def _make_room(self, wanted: int) -> None:
        while self._kept and self.used_bytes + wanted > self._limit_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[str, str]) -> None:
        entry = self._kept.pop(key)
        self.used_bytes -= entry.size
        for item in entry.body()["output"]:
            self._homes.pop((key[0], item["id"]), None)


def packed(items: Iterable[Item]) -> tuple[bytes, ...]:
    """As they are stored, each with an id."""
    return tuple(as_json({"id": _new_id(item), **item}) for item in items)


_PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _new_id(item: Item) -> str:
    type_ = item.get("type")
    prefix = _PREFIXES.get(type_, "msg") if isinstance(type_, str) else "msg"
    return f"{prefix}_{uuid.uuid4().hex}"
