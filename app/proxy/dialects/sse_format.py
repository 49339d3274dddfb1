"""Event streams as bytes: writing an event, and finding them in what comes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json

from app.domain.errors import AnswerTooLarge, RouterError, TooManyParts
from app.domain.units import MIB
from app.proxy.dialects.json_pieces import MOST_PARTS, PIECE, object_of, written

DATA = b"data:"
NAME = b"event:"


def event(body: dict[str, Any], name: str = "", size: int = 0) -> bytes:
    """`size`: bytes that it has, about, where they may be many."""
    return _before(name) + in_pieces(body, size) + b"\n\n"


def write_event(text: bytearray, body: dict[str, Any], name: str) -> None:
    """A large one, behind others: it is there once."""
    text += _before(name)
    written(body, as_json, text)
    text += b"\n\n"


def _before(name: str) -> bytes:
    return b"event: %b\ndata: " % name.encode() if name else b"data: "


def line(body: dict[str, Any], size: int = 0) -> bytes:
    """Of a stream that is one object a line. `size` as in `event`."""
    return bytes(in_pieces(body, size)) + b"\n"


def object_in(text: bytes | bytearray) -> dict[str, Any] | None:
    """None where it is no JSON, or no object. Raises `AnswerTooLarge`."""
    try:
        found = from_json(text) if len(text) <= PIECE else object_of(text)
    except TooManyParts:
        raise AnswerTooLarge(
            f"llama-server's answer has more than {MOST_PARTS} values: ask for less of it"
        ) from None
    except (ValueError, RouterError):
        return None
    return found if isinstance(found, dict) else None


def as_json(body: object) -> bytes:
    """In ASCII: a client's text may hold half a surrogate pair."""
    return json.dumps(body, separators=(",", ":")).encode()


def in_pieces(body: object, size: int) -> bytes | bytearray:
    """As `as_json` writes it. `size`: bytes that it has, about."""
    return as_json(body) if size <= PIECE else written(body, as_json)


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


MOST_BYTES = 8 * MIB
"""Of an event. One that tells a whole answer once more has a few hundred thousand at most."""


class EventReader:
    """Finds the events in the pieces of a stream, wherever these were cut. Lines end with LF."""

    def __init__(self) -> None:
        self.rest = bytearray()
        """Of an event that is not complete yet."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Raises `AnswerTooLarge` for an event that does not end."""
        if not self.rest:
            *whole, rest = data.split(b"\n\n")
            self.rest += rest
        elif (end := self._end_of_rest(data)) < 0:
            whole = []
        else:  # what came before is looked through once, however many pieces it came in
            first, behind = self.rest[:end], bytes(self.rest[end:])
            self.rest.clear()
            *whole, rest = behind.split(b"\n\n")
            whole[0] = bytes(first) + whole[0]
            self.rest += rest
        if len(self.rest) > MOST_BYTES:
            raise AnswerTooLarge(f"llama-server's answer has an event of more than {MOST_BYTES // MIB} MB")
        return (_read(text) for text in whole if text)

    def _end_of_rest(self, data: bytes) -> int:
        """Where the event ends of which these are the next bytes; -1: not in them."""
        begin = len(self.rest) - 1
        self.rest += data
        return self.rest.find(b"\n\n", begin)

    def end(self) -> Iterator[Event]:
        """What came without the empty line behind it."""
        rest = bytes(self.rest).strip(b"\n")
        self.rest.clear()
        return iter([_read(rest)] if rest else [])


def _read(text: bytes) -> Event:
    name, data = "", []
    for line in text.split(b"\n"):
        if line.startswith(DATA):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(NAME):
            name = line[6:].strip().decode("utf-8", "replace")
    return Event(name, b"\n".join(data), text + b"\n\n")
