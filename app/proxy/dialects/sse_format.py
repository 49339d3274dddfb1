"""Event streams as bytes: writing an event, and finding them in what comes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json

DATA = b"data:"
NAME = b"event:"


def event(body: dict[str, Any], name: str = "") -> bytes:
    named = b"event: %b\n" % name.encode() if name else b""
    return named + b"data: " + as_json(body) + b"\n\n"


def line(body: dict[str, Any]) -> bytes:
    """Of a stream that is one object a line."""
    return as_json(body) + b"\n"


def object_in(text: bytes) -> dict[str, Any] | None:
    """None where it is no JSON, or no object."""
    try:
        found = from_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def as_json(body: object) -> bytes:
    """In ASCII: a client's text may hold half a surrogate pair."""
    return json.dumps(body, separators=(",", ":")).encode()


def comment(text: str) -> bytes:
    """A line that clients ignore."""
    return f": {text}".rstrip().encode() + b"\n\n"


def is_only_comments(data: bytes) -> bool:
    """Whether these lines carry nothing for the client. One read may hold both kinds."""
    return all(not line or line.startswith(b":") for line in data.split(b"\n"))


class Event(NamedTuple):
    """`raw` is all of it, with the empty line that ends it; comments stand in one of their own."""

    name: str
    data: bytes
    raw: bytes

    def json(self) -> dict[str, Any] | None:
        """None where it is no object: a comment, or `[DONE]`."""
        return object_in(self.data)


class EventReader:
    """Finds the events in the pieces of a stream, wherever these were cut. Lines end with LF."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Event]:
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        return (_read(text) for text in whole if text)

    def end(self) -> Iterator[Event]:
        """What came without the empty line behind it."""
        rest, self._rest = self._rest.strip(b"\n"), b""
        return iter([_read(rest)] if rest else [])


def _read(text: bytes) -> Event:
    name, data = "", []
    for line in text.split(b"\n"):
        if line.startswith(DATA):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(NAME):
            name = line[6:].strip().decode("utf-8", "replace")
    return Event(name, b"\n".join(data), text + b"\n\n")
