"""Answers are read the same way wherever they are cut, and whether their head is known or not."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.proxy.answer_reader import (
    MAX_KNOWN_BYTES,
    MAX_KNOWN_HEADS,
    AnswerHead,
    AnswerReader,
    KnownAnswerHeads,
    NotHttp,
    Stage,
)

LINES = [
    b"Content-Length: 3",
    b"Content-Length: 2",
    b"content-length:  3",
    b"Content-Length: ",
    b"Content-Length: 03",
    b"Content-Type: text/event-stream",
    b"Content-Type: application/json",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"X: a\nb",
]
STATUSES = [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 100 Continue"]
HEADS = st.builds(
    lambda status, lines: b"\r\n".join([status, *lines, b"", b""]),
    st.sampled_from(STATUSES),
    st.lists(st.sampled_from(LINES), max_size=3),
)
BODIES = st.sampled_from([b"", b"ab", b"abc", b"abcd", b"3\r\nabc\r\n0\r\n\r\n", b"no chunk"])


def read(known: KnownAnswerHeads, *pieces: bytes) -> object:
    """What the listener is told; None where it is no answer."""
    reader, head, body = AnswerReader(known), None, b""
    try:
        for piece in pieces:
            found, data = reader.feed(piece)
            head, body = found or head, body + data
    except NotHttp:
        return None
    told = [getattr(head, name, None) for name in AnswerHead.__slots__]
    return told, reader.length, body, reader.stage, reader.has_excess


def ok(*lines: bytes) -> bytes:
    return b"\r\n".join([STATUSES[0], *lines, b"", b""])


@example([(ok(b"Content-Length: 3"), b"abc"), (ok(b"Content-Length: "), b"abc")])
@example([(ok(b"Content-Length: 3"), b"abc"), (ok(b"Content-Length: 2"), b"abc")])
@given(st.lists(st.tuples(HEADS, BODIES), max_size=5))
def test_an_answer_is_read_as_if_it_were_the_first(answers: list[tuple[bytes, bytes]]) -> None:
    known = KnownAnswerHeads()
    for head, body in answers:
        assert read(known, head + body) == read(KnownAnswerHeads(), head + body)


@given(HEADS, BODIES)
def test_it_does_not_matter_where_it_is_cut(head: bytes, body: bytes) -> None:
    """Of what is an answer: what is none is noticed sooner or later."""
    said, known = head + body, KnownAnswerHeads()
    whole = read(known, said)
    for cut in range(1, len(said)):
        found = read(known, said[:cut], said[cut:])
        assert found is None or whole is None or found == whole, cut


@pytest.mark.parametrize("said", [b"SSH-2.0", b"\x16\x03", b"HTTP/9"])
def test_what_cannot_become_an_answer_is_not_waited_for(said: bytes) -> None:
    with pytest.raises(NotHttp):
        AnswerReader(KnownAnswerHeads()).feed(said)


def test_the_next_answer_begins_anew() -> None:
    reader = AnswerReader(KnownAnswerHeads())
    for length in (0, 2, 5):
        reader.expect(has_body=True)
        head, body = reader.feed(ok(b"Content-Length: %d" % length) + b"a" * length)
        assert head is not None
        assert (body, reader.stage, reader.length) == (b"a" * length, Stage.COMPLETE, length)


def test_only_so_much_is_remembered() -> None:
    known = KnownAnswerHeads()
    for number in range(3 * MAX_KNOWN_HEADS):
        known.read(ok(b"X: %d" % number))
        assert len(known._heads) <= MAX_KNOWN_HEADS
    before = dict(known._heads)
    known.read(ok(b"X: " + b"a" * MAX_KNOWN_BYTES))
    assert known._heads == before
