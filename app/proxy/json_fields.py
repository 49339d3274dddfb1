"""The JSON of a request, read in linear time and without making objects of what nobody asks for. Pure.

A parser makes an object of every value, and holds the interpreter while it does: 64 MB of empty lists took
14 s and 1.9 GB. So a small body is parsed whole, and of a larger one only the top-level fields are: what they
hold is stepped over, in pieces, and is llama-server's to judge.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from pydantic_core import from_json

from app.domain.errors import BadRequest, InvalidJson

SMALL_BYTES = 65536
"""Parsed whole within a millisecond or two, whatever it holds. Larger ones may take seconds, and are not for
the event loop."""

WINDOW = 65536
"""The most bytes that one call of the regular expression engine looks at: it lets no other thread run."""

MAX_PARTS = 1_000_000
"""Strings, lists and objects of a larger body: stepping over one takes about a microsecond."""

MAX_PARTS_READ = 200_000
"""Of a body that is read whole, numbers and the like included: making an object of one holds the interpreter
for half a microsecond."""

MAX_FIELDS = 1000
MAX_DEPTH = 200
"""As the parser's own."""

LONG_VALUE = 4096


class Unread:
    """A list, an object or a long text of a large body, which was stepped over."""


UNREAD: Final = Unread()


def fields_of(body: bytes | bytearray) -> dict[str, Any]:
    """The fields of the object. Raises `InvalidJson`, and `BadRequest` where it is something else."""
    if len(body) > SMALL_BYTES:
        return _Scan(body, MAX_PARTS, counts_all=False).fields()
    fields = _parsed(body)
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    return fields


def whole_fields_of(body: bytes | bytearray) -> dict[str, Any]:
    """As `fields_of`, but all that they hold is read. Raises `BadRequest` for too many parts, too."""
    if len(body) <= SMALL_BYTES:
        return fields_of(body)
    _Scan(body, MAX_PARTS_READ, counts_all=True).fields()
    fields: dict[str, Any] = _parsed(body)
    return fields


def _parsed(text: bytes | bytearray) -> Any:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    if _may_overflow(text) and _overflows(value):
        raise InvalidJson("the body is not valid JSON: a number in it is too large")
    return value


_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS = b"0" * 300


def _may_overflow(text: bytes | bytearray) -> bool:
    """Whether a large exponent or many digits stand in it. As a regular expression this took 30 ns a byte."""
    more = len(_MANY_DIGITS)
    return any(_has_many_digits(text[at : at + WINDOW + more]) for at in range(0, len(text), WINDOW))


def _has_many_digits(text: bytes | bytearray) -> bool:
    text = text.translate(_ALIKE)
    return b"e00" in text or b"e+00" in text or _MANY_DIGITS in text


def _overflows(value: object) -> bool:
    """True where a number is beyond a double. Nesting is limited by the parser."""
    if isinstance(value, dict):
        return any(map(_overflows, value.values()))
    if isinstance(value, list):
        return any(map(_overflows, value))
    return isinstance(value, (int, float)) and abs(value) > sys.float_info.max


_BLANKS = re.compile(rb"[ \t\n\r]*")
_MARK = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[^\s,}\]]{1,400}")
_QUOTE, _COLON, _COMMA, _OPEN, _CLOSE = b'":,{}'
_CLOSES = {_OPEN: _CLOSE, b"["[0]: b"]"[0]}


class _Scan:
    """One way through a body, from its first byte to its last."""

    def __init__(self, body: bytes | bytearray, most_parts: int, *, counts_all: bool) -> None:
        """`counts_all`: numbers and the like are parts too."""
        self._body, self._at, self._parts_left = body, 0, most_parts
        self._most_parts, self._counts_all = most_parts, counts_all

    def fields(self) -> dict[str, Any]:
        if self._next() != _OPEN:
            raise BadRequest("the body must be a JSON object")
        self._at += 1
        found: dict[str, Any] = {}
        if self._next() != _CLOSE:
            self._read_into(found)
        self._take(_CLOSE)
        if self._next() is not None:
            raise self._invalid("something follows the object")
        return found

    def _read_into(self, found: dict[str, Any]) -> None:
        while True:
            name = self._name()
            found[name] = self._value()
            if len(found) > MAX_FIELDS:
                raise BadRequest(f"the body has more than {MAX_FIELDS} fields")
            if self._next() != _COMMA:
                return
            self._at += 1

    def _name(self) -> str:
        if self._next() != _QUOTE:
            raise self._invalid("a field's name is missing")
        begin = self._at
        self._skip_text()
        if self._at - begin > LONG_VALUE:
            raise self._invalid("a field's name is too long")
        name: str = _parsed(self._body[begin : self._at])
        self._next()
        self._take(_COLON)
        return name

    def _value(self) -> Any:
        first, begin = self._next(), self._at
        if first == _QUOTE:
            self._skip_text()
            is_long = self._at - begin > LONG_VALUE
            return UNREAD if is_long else _parsed(self._body[begin : self._at])
        if first in _CLOSES:
            self._skip_nested()
            return UNREAD
        scalar = _SCALAR.match(self._body, self._at)
        if scalar is None:
            raise self._invalid("a value is missing")
        self._at = scalar.end()
        return _parsed(scalar.group())

    # --- stepping over

    def _next(self) -> int | None:
        """The next byte that is no blank; None at the end."""
        size = len(self._body)
        while self._at < size:
            found = _BLANKS.match(self._body, self._at, self._at + WINDOW)
            assert found is not None
            self._at = found.end()
            if self._at < size and self._body[self._at] not in b" \t\n\r":
                return self._body[self._at]
        return None

    def _take(self, wanted: int) -> None:
        if self._at >= len(self._body) or self._body[self._at] != wanted:
            raise self._invalid(f"{chr(wanted)!r} is missing")
        self._at += 1

    def _skip_text(self) -> None:
        """From a quotation mark behind its partner."""
        self._count()
        self._at += 1
        while True:
            end = self._find_quote()
            if not self._is_escaped(self._at, end):
                self._at = end + 1
                return
            self._count()
            self._at = end + 1

    def _find_quote(self) -> int:
        for begin in range(self._at, len(self._body), WINDOW):
            found = self._body.find(b'"', begin, begin + WINDOW)
            if found >= 0:
                return found
        raise self._invalid("a text does not end")

    def _is_escaped(self, begin: int, end: int) -> bool:
        """Whether an odd number of backslashes stands before `end`, none of them before `begin`."""
        count, is_open = 0, True
        while is_open and end - count > begin:
            window = self._body[max(begin, end - count - WINDOW) : end - count]
            more = len(window) - len(window.rstrip(b"\\"))
            count, is_open = count + more, more == len(window)
        return count % 2 == 1

    def _skip_nested(self) -> None:
        """From an opening bracket behind its partner."""
        open_ones: list[int] = []
        while True:
            mark = self._find_mark()
            if mark == _QUOTE:
                self._skip_text()
                continue
            self._count()
            self._at += 1
            if mark in _CLOSES:
                open_ones.append(_CLOSES[mark])
                if len(open_ones) > MAX_DEPTH:
                    raise self._invalid("it is nested too deeply")
            elif open_ones.pop() != mark:
                raise self._invalid("its brackets do not match")
            if not open_ones:
                return

    def _find_mark(self) -> int:
        for begin in range(self._at, len(self._body), WINDOW):
            found = _MARK.search(self._body, begin, begin + WINDOW)
            if self._counts_all:
                end = begin + WINDOW if found is None else found.start()
                self._count(self._body.count(b",", begin, end))
            if found is not None:
                self._at = found.start()
                return self._body[self._at]
        raise self._invalid("a bracket is not closed")

    def _count(self, parts: int = 1) -> None:
        self._parts_left -= parts
        if self._parts_left < 0:
            what = "values" if self._counts_all else "texts, lists and objects"
            raise BadRequest(f"the body has more than {self._most_parts} {what}; split the request")

    def _invalid(self, why: str) -> InvalidJson:
        return InvalidJson(f"the body is not valid JSON: {why} at byte {self._at}")
