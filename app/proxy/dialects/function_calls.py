"""Calls of functions: Ollama's programs get each as a whole, its arguments as an object. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.proxy.dialects.sse_format import object_in

Call = dict[str, Any]


class Calls:
    """Those of one answer while they come."""

    def __init__(self) -> None:
        self._begun: dict[int, Call] = {}

    def take(self, parts: Sequence[Mapping[str, Any]]) -> list[Call]:
        """Those that are whole now: of which another one has begun."""
        for place, part in enumerate(parts):
            index = part.get("index", place)
            call = self._begun.setdefault(index, {"id": "", "name": "", "arguments": ""})
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
        last = max(self._begun, default=0)
        return self._told([index for index in sorted(self._begun) if index < last])

    def rest(self) -> list[Call]:
        """The answer has ended."""
        return self._told(sorted(self._begun))

    def _told(self, indexes: Sequence[int]) -> list[Call]:
        return [_call(index, self._begun.pop(index)) for index in indexes]


def _call(index: int, call: Call) -> Call:
    """What was cut off within its arguments has none."""
    arguments = object_in(call["arguments"].encode("utf-8", "surrogatepass")) or {}
    return {"id": call["id"], "function": {"index": index, "name": call["name"], "arguments": arguments}}
