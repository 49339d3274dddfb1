"""Large JSON, read and written in pieces: a parser lets no other thread run before it has done. Pure.

Long texts, and long lists of numbers, are taken out first and read by themselves; what is left is small.
Reading 63 MB of text at once held the interpreter for up to 170 ms, writing them for up to 870.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from app.domain.errors import InvalidJson
from app.proxy.dialects.json_scan import Scan, Span, overflows, parsed

PIECE = 65536
"""Characters, or bytes."""

MAX_PARTS_READ = 200_000
"""Of a client's body that is read whole, numbers and the like included: making an object of one holds the
interpreter for half a microsecond."""

PIECE_OF_LIST = 1000
ESCAPE_BYTES, PAIR_BYTES = 6, 12
_BACKSLASH, _QUOTE, _U = b'\\"u'

Dump = Callable[[object], bytes]


def fields_in_pieces(text: bytes | bytearray, most_parts: int) -> dict[str, Any]:
    """Of the object. Raises `InvalidJson`, and `BadRequest` where it is something else, or has more parts."""
    scan = Scan(text, most_parts, counts_all=True)
    scan.fields()
    skeleton, long_ones = _cut_out(text, scan.long_ones)
    fields: dict[str, Any] = _filled(parsed(skeleton), long_ones)
    if overflows([*long_ones.values()]):
        raise InvalidJson("the body is not valid JSON: a number in it is too large")
    return fields


def object_of(text: bytes | bytearray) -> dict[str, Any]:
    """Of an object that was written here, or by llama-server. Raises `RouterError` for anything else."""
    if len(text) > PIECE:
        return fields_in_pieces(text, sys.maxsize)
    found: dict[str, Any] = json.loads(text)
    return found


def _cut_out(text: bytes | bytearray, spans: Sequence[Span]) -> tuple[bytearray, dict[str, Any]]:
    """The text with names in the place of what is long, and what these stand for. No client knows them."""
    skeleton, found, at, secret = bytearray(), {}, 0, secrets.token_hex(16)
    for number, (begin, end) in enumerate(spans):
        name = f"{secret}{number}"
        skeleton += text[at:begin]
        skeleton += f'"{name}"'.encode()
        found[name] = _long_one(text, begin, end)
        at = end
    skeleton += text[at:]
    return skeleton, found


def _long_one(text: bytes | bytearray, begin: int, end: int) -> Any:
    if text[begin] != _QUOTE:
        return parsed(text[begin:end])
    pieces = []
    at, end = begin + 1, end - 1
    while at < end:
        cut = _cut(text, at, at + PIECE) if at + PIECE < end else end
        pieces.append(_read(b'"%b"' % bytes(text[at:cut])))
        at = cut
    return "".join(pieces)


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


def _filled(value: Any, long_ones: dict[str, Any]) -> Any:
    if isinstance(value, str):
        return long_ones.get(value, value)
    if isinstance(value, list):
        return [_filled(part, long_ones) for part in value]
    if isinstance(value, dict):
        return {long_ones.get(name, name): _filled(part, long_ones) for name, part in value.items()}
    return value


# --- writing


def text_of(value: object, size: int) -> bytes | bytearray:
    """`size`: bytes that it has, about."""
    return to_json(value) if size <= PIECE else written(value, to_json)


def written(value: object, dump: Dump) -> bytearray:
    """As `dump` would write it, without blanks."""
    text = bytearray()
    for piece in _pieces(value, dump):
        text += piece
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
