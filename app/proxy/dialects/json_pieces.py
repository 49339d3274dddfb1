"""Large JSON, read and written in pieces: a parser lets no other thread run before it has done. Pure.

Long texts, and parts of long lists and objects, are taken out first and read by themselves; what is left is
small. Reading 63 MB of text at once held the interpreter for up to 170 ms, writing them for up to 870, and
reading the probabilities of 20,000 tokens, 17 MB of small objects, for 690.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from app.domain.errors import InvalidJson
from app.proxy.dialects.json_scan import LONG_TEXT, WINDOW, Scan, parsed

PIECE = 65536
"""Characters, or bytes."""

MAX_PARTS_READ = 200_000
"""Of a client's body that is read whole, numbers and the like included: making an object of one holds the
interpreter for half a microsecond."""

GROWTH = 64
"""Pieces by which a long text grows."""

PIECE_OF_LIST = 1000
MOST_PARTS = 3_000_000
"""Of what is no request: an object takes some hundred bytes."""

ESCAPE_BYTES, PAIR_BYTES = 6, 12
_U = ord("u")

Dump = Callable[[object], bytes]


def fields_in_pieces(text: bytes | bytearray, most_parts: int) -> dict[str, Any]:
    """Of the object. Raises `InvalidJson`, and `BadRequest` where it is something else, or has more parts."""
    cut_out = _CutOut(text)
    Scan(text, most_parts, counts_all=True, cutter=cut_out).fields()
    fields: dict[str, Any] = cut_out.read(0, len(text))
    return fields


def object_of(text: bytes | bytearray) -> dict[str, Any]:
    """Of an object that was written here, or by llama-server. Raises `RouterError` for anything else."""
    if len(text) > PIECE:
        return fields_in_pieces(text, MOST_PARTS)
    found: dict[str, Any] = json.loads(text)
    return found


class _Run(NamedTuple):
    """Elements or members, which stand in their list or object."""

    read: Any


class _CutOut:
    """What was taken out of a text, each with a name in its place, which no client knows."""

    def __init__(self, text: bytes | bytearray) -> None:
        self._text, self._secret, self._count = text, secrets.token_hex(16), 0
        self._places: list[tuple[int, int, bytes]] = []
        self._read: dict[str, Any] = {}

    def text(self, begin: int, end: int) -> None:
        name = self._named(_long_text(self._text, begin + 1, end - 1))
        self._places.append((begin, end, b'"%b"' % name))

    def run(self, begin: int, end: int, *, of_object: bool) -> None:
        read = self.read(begin, end, b"{%b}" if of_object else b"[%b]")
        if not read:
            raise InvalidJson(f"the body is not valid JSON: a value is missing at byte {begin}")
        name = self._named(_Run(read))
        self._places.append((begin, end, b'"%b":0' % name if of_object else b'"%b"' % name))

    def read(self, begin: int, end: int, form: bytes = b"%b") -> Any:
        """What stands there, with all that was taken out of it."""
        places = self._places
        first = len(places)
        while first and places[first - 1][0] >= begin:
            first -= 1
        inner = places[first:]
        del places[first:]
        skeleton, at = bytearray(), begin
        for start, stop, instead in inner:
            skeleton += _without_blanks(self._text, at, start)
            skeleton += instead
            at = stop
        skeleton += _without_blanks(self._text, at, end)
        read = parsed(form % bytes(skeleton))
        return self._filled(read) if inner else read

    def _named(self, read: Any) -> bytes:
        self._count += 1
        name = f"{self._secret}{self._count}"
        self._read[name] = read
        return name.encode()

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._read.pop(value, value)
        if isinstance(value, list):
            return self._filled_list(value)
        if isinstance(value, dict):
            return self._filled_object(value)
        return value

    def _filled_list(self, given: list[Any]) -> list[Any]:
        filled: list[Any] = []
        for part in given:
            found = self._filled(part)
            if isinstance(found, _Run):
                filled += found.read
            else:
                filled.append(found)
        return filled

    def _filled_object(self, given: dict[str, Any]) -> dict[str, Any]:
        filled: dict[str, Any] = {}
        for name, part in given.items():
            found = self._filled(name)
            if isinstance(found, _Run):
                filled |= found.read
            else:
                filled[found] = self._filled(part)
        return filled


def _without_blanks(text: bytes | bytearray, begin: int, end: int) -> bytes:
    """No more than one where there are so many that they are in no text."""
    if end - begin <= 2 * WINDOW:
        return bytes(text[begin:end])
    return b"".join(
        _MANY_BLANKS.sub(b" ", text[at : min(at + WINDOW, end)]) for at in range(begin, end, WINDOW)
    )


_MANY_BLANKS = re.compile(rb"[ \t\n\r]{%d,}" % (2 * LONG_TEXT))


def _long_text(text: bytes | bytearray, at: int, end: int) -> str:
    """It grows in its place: joined at once, its pieces would be there twice, and made in one long step. But
    seldom: the system moves all of it each time."""
    read, pieces = "", list[str]()
    while at < end:
        cut = _cut(text, at, at + PIECE) if at + PIECE < end else end
        pieces.append(_read(b'"%b"' % bytes(text[at:cut])))
        at = cut
        if len(pieces) == GROWTH:
            read += "".join(pieces)
            pieces.clear()
    read += "".join(pieces)
    return read


def _read(text: bytes) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None


def _cut(text: bytes | bytearray, begin: int, at: int) -> int:
    """The last place up to `at` where a piece of a text can end that starts at `begin`."""
    for _ in range(3):
        at -= text[at] & 0xC0 == 0x80  # within a character
    begun = text.rfind(b"\\", at - ESCAPE_BYTES + 1, at)
    if begun >= 0 and _escapes(text, begin, begun):
        length = ESCAPE_BYTES if text[begun + 1] == _U else 2
        at = begun if begun + length > at else at
    before = at - ESCAPE_BYTES
    is_half_pair = text[before : before + 3].lower() == b"\\ud" and text[before + 3] in b"89abAB"
    return before if is_half_pair and _escapes(text, begin, before) else at


def _escapes(text: bytes | bytearray, begin: int, at: int) -> bool:
    """Whether the backslash there is not escaped itself."""
    before = text[begin:at]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0


def let_go(*values: Any) -> None:
    """Of what was read, and is needed no more: freed at once, a million objects hold the interpreter, too."""
    for value in values:
        if isinstance(value, dict):
            while value:
                let_go(value.popitem()[1])
        elif isinstance(value, list):
            while value:
                let_go(value.pop())


# --- writing


def text_of(value: object, size: int) -> bytes | bytearray:
    """`size`: bytes that it has, about."""
    return to_json(value) if size <= PIECE else written(value, to_json)


def written(value: object, dump: Dump, text: bytearray | None = None) -> bytearray:
    """As `dump` would write it, without blanks. `text`: behind which it is written."""
    text = bytearray() if text is None else text
    for piece in _pieces(value, dump):
        text += piece
    return text


def joined(parts: Sequence[bytes | bytearray]) -> bytes | bytearray:
    """Large ones grow in their place: joined at once they would be made in one long step."""
    if len(parts) == 1:
        return parts[0]
    if sum(map(len, parts)) <= PIECE:
        return b"".join(parts)
    text, *others = [part for part in parts if part]
    for part in others:
        text = text if isinstance(text, bytearray) else bytearray(text)
        for at in range(0, len(part), PIECE):
            text += part[at : at + PIECE]
    return text


def joined_text(parts: list[str]) -> str:
    """So with a text. The parts are gone then: all of it would be there twice."""
    text = ""
    parts.reverse()
    while parts:
        few = parts[-GROWTH:]
        del parts[-GROWTH:]
        text += "".join(reversed(few))
    return text


def _pieces(value: object, dump: Dump) -> Iterator[bytes]:
    if isinstance(value, str) and len(value) > PIECE:
        yield b'"'
        for at in range(0, len(value), PIECE):
            yield dump(value[at : at + PIECE])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        between = b"{"
        for name, part in value.items():
            yield between + dump(name) + b":"
            yield from _pieces(part, dump)
            between = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, (list, tuple)):
        yield from _list_pieces(value, dump)
    else:
        yield dump(value)


def _list_pieces(values: Sequence[object], dump: Dump) -> Iterator[bytes]:
    between = b"["
    for at in range(0, len(values), PIECE_OF_LIST):
        part = values[at : at + PIECE_OF_LIST]
        if all(isinstance(value, (int, float)) for value in part):
            yield between + dump(part)[1:-1]
            between = b","
            continue
        for value in part:
            yield between
            yield from _pieces(value, dump)
            between = b","
    yield b"]" if values else b"[]"
