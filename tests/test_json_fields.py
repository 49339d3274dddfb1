"""The JSON of a request: the same answers for small and large bodies, in time that grows with their size."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from app.domain.errors import BadRequest, InvalidJson
from app.proxy import json_fields as module
from app.proxy.dialects import json_pieces, json_scan
from app.proxy.dialects.json_pieces import MAX_PARTS_READ, fields_in_pieces, object_of, written
from app.proxy.dialects.json_scan import LONG_VALUE, MAX_DEPTH, MAX_FIELDS, UNREAD, WINDOW, Unread
from app.proxy.dialects.sse_format import as_json
from app.proxy.json_fields import SMALL_BYTES, fields_of, whole_fields_of
from tests.patience import is_ever

PADDING = b" " * SMALL_BYTES
MB = 2**20


def of_large(text: bytes) -> dict[str, Any]:
    """As the scan reads it."""
    return fields_of(text + PADDING)


def shown(value: Any) -> Any:
    """What the scan tells of a value."""
    is_long = isinstance(value, str) and len(json.dumps(value)) > LONG_VALUE
    return UNREAD if isinstance(value, (list, dict)) or is_long else value


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text() | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values, max_size=6), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_a_large_body_says_what_a_small_one_does(fields: dict[str, Any], ascii: bool, indent: Any) -> None:
    text = json.dumps(fields, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    try:
        whole = fields_of(text)
    except InvalidJson:  # half a surrogate pair
        return
    assert of_large(text) == {name: shown(value) for name, value in whole.items()}


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"\\"}"}',
        b'{"a":"\\\\"}',
        b'{"a":["\\\\","\\"]"]}',
        b'{"a":{"b":"}"},"c":1}',
        b'{ "a" : [ 1 , { "b" : [ ] } ] , "c" : null }',
        b'{"a":1,"a":2}',
        b'{"\\u006dodel":"m"}',
        b"{}",
        b" {} ",
    ],
)
def test_texts_and_brackets_are_told_apart(text: bytes) -> None:
    assert of_large(text) == {name: shown(value) for name, value in json.loads(text).items()}


def test_of_a_large_body_that_is_read_whole_numbers_are_counted_too() -> None:
    """Thirty million of them held the interpreter for six seconds, and took a gigabyte."""
    few = b'{"a":[' + b"1," * (MAX_PARTS_READ // 2) + b'1],"b":"' + b"," * MAX_PARTS_READ + b'"}'
    assert whole_fields_of(few)["b"] == "," * MAX_PARTS_READ
    with pytest.raises(BadRequest, match="values"):
        whole_fields_of(b'{"a":[' + b"1," * (MAX_PARTS_READ + 1) + b"1]}")
    assert fields_of(b'{"a":[' + b"1," * (MAX_PARTS_READ + 1) + b"1]}") == {"a": UNREAD}


@pytest.mark.parametrize("number", [b"1e999", b"1E+999", b"9" * 400])
@pytest.mark.parametrize("begin", range(WINDOW - 404, WINDOW + 4, 50))
def test_a_number_that_is_too_large_is_found_wherever_it_stands(number: bytes, begin: int) -> None:
    body = b'{"a":"' + b"x" * (begin - 13) + b'","b":' + number + PADDING + b"}"
    with pytest.raises(InvalidJson, match="too large"):
        whole_fields_of(body)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":1',
        b'{"a":1,',
        b'{"a":1,}',
        b'{,"a":1}',
        b'{"a":1 "b":2}',
        b'{"a" 1}',
        b"{a:1}",
        b'{"a":}',
        b'{"a":1}}',
        b'{"a":1}{"b":2}',
        b'{"a":[}',
        b'{"a":[1,2}',
        b'{"a":[{]}}',
        b'{"a":"',
        b'{"a":"\\"}',
        b'{"a":nul}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":01}',
        b'{"a":' + b"9" * 401 + b"}",
        b'{"a":' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b'{"a":"\\ud800"}',
        b'{"\xff":1}',
        b"[]",
        b"1",
        b'"a"',
        b"null",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_refused_of_a_small_body_is_refused_of_a_large_one(text: bytes) -> None:
    for whole in (text, text + PADDING):
        with pytest.raises(BadRequest):
            fields_of(whole)


def test_a_long_text_is_no_name_of_a_model() -> None:
    fields = of_large(b'{"model":"%b","stream":true}' % (b"m" * LONG_VALUE))
    assert isinstance(fields["model"], Unread)
    assert fields["stream"] is True


def test_there_is_an_end_to_fields_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    many = b",".join(b'"%d":0' % number for number in range(MAX_FIELDS + 1))
    with pytest.raises(BadRequest, match="fields"):
        of_large(b"{%b}" % many)
    monkeypatch.setattr(module, "MAX_PARTS", 100)
    for part in (b"[],", b'"",', b'"\\"",'):
        with pytest.raises(BadRequest, match="split"):
            of_large(b'{"a":[%b0]}' % (part * 101))


WORST = {
    "digits": b"9" * 299 + b" ",
    "lists": b"[],",
    "texts": b'"",',
    "quotes": b'\\"',
    "backslashes": b"\\",
    "blanks": b" ",
    "names": b'"a":0,',
    "numbers": b"1e10,",
    "open": b"[",
    "letters": b"a",
}


def seconds(body: bytes) -> float:
    """Processor time of this thread: a busy machine does not count."""
    begun = time.thread_time()
    with contextlib.suppress(BadRequest):
        fields_of(body)
    return time.thread_time() - begun


@pytest.mark.parametrize("unit", WORST.values(), ids=WORST.keys())
@pytest.mark.parametrize(
    "around", [b"%b", b'{"a":[%b]}', b'{"a":"%b"}', b"{%b}"], ids=["bare", "list", "text", "object"]
)
def test_reading_takes_time_in_proportion(unit: bytes, around: bytes) -> None:
    """Four times as much, four times as long: eight at most. What takes no time to speak of is no matter."""
    small, large = (around.replace(b"%b", unit * (size // len(unit))) for size in (MB // 4, MB))
    once = min(seconds(small) for _ in range(3))
    assert is_ever(lambda: seconds(large) <= max(8 * once, 0.05))


@pytest.mark.parametrize("unit", [*WORST.values(), b'"\\u0061":"b",'], ids=str)
def test_a_body_that_is_parsed_whole_is_parsed_at_once(unit: bytes) -> None:
    """In units of what the interpreter needs to count to a number on the same processor."""

    def count() -> float:
        begun = time.thread_time()
        sum(range(200_000))
        return time.thread_time() - begun

    body = b'{"a":[' + (unit * SMALL_BYTES)[: SMALL_BYTES - 10] + b"]}"
    assert min(seconds(body) for _ in range(3)) < 3 * min(count() for _ in range(3))


# --- read as a whole, and written, in pieces

long_texts = st.lists(
    st.sampled_from(["a", "\\", '"', "\n", "é", "漢", "😀", "\x01", "\\u", "\\ud83d", "b" * 50]), max_size=60
).map("".join)
long_values = st.recursive(
    values | long_texts | st.lists(st.integers() | st.floats(-1e300, 1e300), max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=30,
)


@contextlib.contextmanager
def small_pieces(piece: int, run: int) -> Iterator[None]:
    """Of that size, so that a short text has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "PIECE", piece)
        patch.setattr(json_pieces, "PIECE_OF_LIST", 7)
        patch.setattr(json_scan, "LONG_TEXT", 20)
        patch.setattr(json_scan, "LONG_RUN", run)
        patch.setattr(json_scan, "WINDOW", 80)  # more than two of the longest numbers
        yield


@given(
    st.dictionaries(st.text(max_size=5), long_values, max_size=6),
    st.booleans(),
    st.integers(16, 64),
    st.integers(1, 64),
)
def test_what_is_read_and_written_in_pieces_is_the_same(
    fields: dict[str, Any], ascii: bool, piece: int, run: int
) -> None:
    text = json.dumps(fields, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    try:
        whole = fields_of(text)
    except InvalidJson:  # half a surrogate pair
        return
    with small_pieces(piece, run):
        assert fields_in_pieces(text, 10**9) == whole
        assert written(whole, to_json) == to_json(whole)
        assert json.loads(written(whole, as_json)) == whole


@given(
    st.dictionaries(st.text(max_size=3), long_values, max_size=4),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(b',:"{}[] 1a\\')), min_size=1, max_size=3),
)
def test_what_is_no_json_is_none_in_pieces_either(
    fields: dict[str, Any], run: int, changes: list[tuple[int, int]]
) -> None:
    text = bytearray(json.dumps(fields, indent=1).encode())
    for place, byte in changes:
        text[place % len(text)] = byte
    try:
        whole = fields_of(text)
    except BadRequest:
        with small_pieces(64, run), pytest.raises(BadRequest):
            fields_in_pieces(text, 10**9)
    else:
        with small_pieces(64, run):
            assert fields_in_pieces(text, 10**9) == whole


def test_of_two_members_with_one_name_the_later_one_counts_in_pieces_too() -> None:
    text = b'{"a":{"x":1,"y":[%b],"x":2,"z":[],"x":3},"a":0,"b":{"x":[%b],"x":4}}' % (
        b"0," * 50 + b"0",
        b"[],[]",
    )
    for run in range(1, 120):
        with small_pieces(64, run):
            assert fields_in_pieces(text, 10**9) == json.loads(text)


@pytest.mark.parametrize(
    "inner", [b",", b"1,", b",1", b"1, ,1", b"1,,1", b"[],,[]", b"[][]", b"[],"], ids=repr
)
def test_a_missing_value_is_a_mistake_in_pieces_too(inner: bytes) -> None:
    """Wherever the pieces end; one may have nothing but blanks between two commas."""
    for blanks in range(0, 200, 3):
        with small_pieces(64, 16), pytest.raises(BadRequest):
            fields_in_pieces(b'{"a":[%b1,%b,1]}' % (b"2," * 60, b" " * blanks), 10**9)
    for run in (1, 3, 9, 30):
        for before in range(0, 40, 3):
            with small_pieces(64, run), pytest.raises(BadRequest):
                fields_in_pieces(b'{"a":[%b%b]}' % (b"2," * before, inner), 10**9)


MOST_AT_ONCE = 4 * WINDOW
"""Bytes. A parser lets no other thread run before it has done: of empty lists, the worst, 4 ms."""

LARGE = {
    "a text": b'{"a":"%b"}' % (b"x" * 4 * MB),
    "lists": b'{"a":[%b0]}' % (b"[]," * 200_000),
    "objects": b'{"a":[%b0]}' % (b'{"b":0},' * 100_000),
    "members": b'{"a":{%b"z":0}}' % b"".join(b'"k%d":[],' % number for number in range(50_000)),
    "short texts": b'{"a":[%b0]}' % (b'"ab",' * 150_000),
    "numbers": b'{"a":[%b[]]}' % (b"1," * 500_000),
    "blanks": b'{"a":[1,%b1]}' % (b" " * 4 * MB),
    "fields": b'{%b"z":0}' % b"".join(b'"k%d":[%b0],' % (number, b"[]," * 200) for number in range(500)),
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_what_is_large_is_read_and_written_in_small_pieces(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def read(piece: bytes, **how: Any) -> Any:
        sizes.append(len(piece))
        return from_json(piece, **how)

    def write(value: object) -> bytes:
        piece = to_json(value)
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(json_scan, "from_json", read)
    monkeypatch.setattr(json_pieces, "from_json", read)
    fields = object_of(text)
    assert fields == json.loads(text)
    written(fields, write)
    assert max(sizes) <= MOST_AT_ONCE


@pytest.mark.parametrize("text", [b"\\x", b"\xff", b"a\nb", b"\\ud800", b'"', b"\\"], ids=repr)
def test_a_mistake_in_a_long_text_is_one(text: bytes) -> None:
    for before in (0, 65530, 65535, 65536, 200_000):
        with pytest.raises(InvalidJson):
            whole_fields_of(b'{"a":"' + b"x" * before + text + b"x" * 100_000 + b'"}')
