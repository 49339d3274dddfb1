"""A way through large JSON without making objects of it, in pieces: other threads have their turns. Pure."""

from __future__ import annotations

import re
import sys
from typing import Any, Final, Protocol

from pydantic_core import from_json

from app.domain.errors import BadRequest, InvalidJson, TooManyParts

WINDOW = 65536
"""The most bytes that one call of the regular expression engine looks at: it lets no other thread run."""

MAX_FIELDS = 1000
MAX_DEPTH = 200
"""As the parser's own."""

LONG_VALUE = 4096
LONG_TEXT = 128
LONG_RUN = 16384
"""Bytes. What is longer is read by itself."""


class Unread:
    """A list, an object or a long text of a large body, which was stepped over."""


UNREAD: Final = Unread()


def parsed(text: bytes | bytearray) -> Any:
    """Raises `InvalidJson`."""
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    if _may_overflow(text) and overflows(value):
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


def overflows(value: object) -> bool:
    """True where a number is beyond a double. Nesting is limited by the parser."""
    if isinstance(value, dict):
        return any(map(overflows, value.values()))
    if isinstance(value, list):
        return any(map(overflows, value))
    return isinstance(value, (int, float)) and abs(value) > sys.float_info.max


BLANKS = b" \t\n\r"
_BLANKS = re.compile(rb"[ \t\n\r]*")
_MARK = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[^\s,}\]]{1,400}")
_QUOTE, _COLON, _COMMA, _OPEN, _CLOSE = b'":,{}'
_LIST, _END_OF_LIST = b"[]"
_CLOSES = {_OPEN: _CLOSE, _LIST: _END_OF_LIST}


class Cutter(Protocol):
    """Takes out what is long, from the inside out. Places: of its first byte, and behind its last."""

    def text(self, begin: int, end: int) -> None:
        """With its quotation marks."""

    def run(self, begin: int, end: int, *, of_object: bool) -> None:
        """Whole elements of a list, or members of an object, with the commas between them."""


class _Nested:
    """A list or an object that is open."""

    __slots__ = ("begin", "closes")

    def __init__(self, closes: int, begin: int) -> None:
        self.closes, self.begin = closes, begin
        """`begin`: of what has not been cut out of it."""


class Scan:
    """One way through a body, from its first byte to its last."""

    def __init__(
        self, body: bytes | bytearray, most_parts: int, *, counts_all: bool, cutter: Cutter | None = None
    ) -> None:
        """`counts_all`: numbers and the like are parts too."""
        self._body, self._at, self._parts_left = body, 0, most_parts
        self._most_parts, self._counts_all = most_parts, counts_all
        self._cutter, self._open_ones = cutter, [_Nested(0, 0)]

    def fields(self) -> dict[str, Any]:
        if self._next() != _OPEN:
            raise BadRequest("the body must be a JSON object")
        self._at += 1
        self._open_ones.append(_Nested(_CLOSE, self._at))
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
            self._element_ended()
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
        name: str = parsed(self._body[begin : self._at])
        self._next()
        self._take(_COLON)
        return name

    def _value(self) -> Any:
        first, begin = self._next(), self._at
        if first == _QUOTE:
            self._skip_text()
            is_long = self._at - begin > LONG_VALUE
            return UNREAD if is_long else parsed(self._body[begin : self._at])
        if first in _CLOSES:
            self._skip_nested()
            return UNREAD
        scalar = _SCALAR.match(self._body, self._at)
        if scalar is None:
            raise self._invalid("a value is missing")
        self._at = scalar.end()
        return parsed(scalar.group())

    # --- stepping over

    def _next(self) -> int | None:
        """The next byte that is no blank; None at the end."""
        size = len(self._body)
        while self._at < size:
            found = _BLANKS.match(self._body, self._at, self._at + WINDOW)
            assert found is not None
            self._at = found.end()
            if self._at < size and self._body[self._at] not in BLANKS:
                return self._body[self._at]
        return None

    def _take(self, wanted: int) -> None:
        if self._at >= len(self._body) or self._body[self._at] != wanted:
            raise self._invalid(f"{chr(wanted)!r} is missing")
        self._at += 1

    def _skip_text(self) -> None:
        """From a quotation mark behind its partner."""
        begin = self._at
        self._count()
        self._at += 1
        while True:
            end = self._find_quote()
            if not self._is_escaped(self._at, end):
                self._at = end + 1
                if end - begin > LONG_TEXT and self._cutter is not None:
                    self._cutter.text(begin, end + 1)
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
        open_ones = self._open_ones
        outside = len(open_ones)
        while True:
            mark = self._find_mark()
            if mark == _QUOTE:
                self._skip_text()
                if self._is_long() and self._next() == _COMMA:  # else it was a name
                    self._element_ended()
                continue
            self._count()
            if mark in _CLOSES:
                self._at += 1
                open_ones.append(_Nested(_CLOSES[mark], self._at))
                if len(open_ones) - outside > MAX_DEPTH:
                    raise self._invalid("it is nested too deeply")
                continue
            if open_ones[-1].closes != mark:
                raise self._invalid("its brackets do not match")
            self._at += 1
            open_ones.pop()
            if len(open_ones) == outside:
                return
            self._element_ended()

    def _find_mark(self) -> int:
        for begin in range(self._at, len(self._body), WINDOW):
            end = begin + WINDOW
            found = _MARK.search(self._body, begin, end)
            if self._counts_all:
                self._count(self._body.count(b",", begin, end if found is None else found.start()))
            if found is not None:
                self._at = found.start()
                return self._body[self._at]
            self._pass_window(begin, end)
        raise self._invalid("a bracket is not closed")

    def _pass_window(self, begin: int, end: int) -> None:
        """In it there are numbers and the like, or blanks."""
        comma = self._body.rfind(b",", begin, end)
        if comma < 0 and len(self._body[begin:end].translate(None, BLANKS)) > WINDOW // 2:
            raise self._invalid("a value is too long")
        if self._cutter is not None and comma > self._open_ones[-1].begin:
            self._cut(comma)

    # --- taking out

    def _is_long(self) -> bool:
        """What has not been cut out of the innermost that is open."""
        return self._at - self._open_ones[-1].begin > LONG_RUN and self._cutter is not None

    def _element_ended(self) -> None:
        """Or a member."""
        if self._is_long():
            self._cut(self._at)

    def _cut(self, end: int) -> None:
        """Up to there, where an element ends."""
        nested = self._open_ones[-1]
        assert self._cutter is not None
        self._cutter.run(nested.begin, end, of_object=nested.closes == _CLOSE)
        at, self._at = self._at, end
        nested.begin = end + 1 if self._next() == _COMMA else self._at
        self._at = max(at, self._at)

    def _count(self, parts: int = 1) -> None:
        self._parts_left -= parts
        if self._parts_left < 0:
            what = "values" if self._counts_all else "texts, lists and objects"
            raise TooManyParts(f"the body has more than {self._most_parts} {what}; split the request")

    def _invalid(self, why: str) -> InvalidJson:
        return InvalidJson(f"the body is not valid JSON: {why} at byte {self._at}")
