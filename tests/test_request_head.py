"""Heads that are read without a parser say what the parser would have said."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.errors import BadRequest
from app.proxy.request_head import MAX_KNOWN_BYTES, MAX_KNOWN_HEADS, KnownHeads, RequestHead
from app.proxy.request_reader import RequestReader

LINES = [
    b"Content-Length: 5",
    b"Content-Length: 12",
    b"content-length: 5",
    b"CONTENT-LENGTH: 5",
    b"Content-Length:5",
    b"Content-Length: ",
    b"Content-Length: 5 ",
    b"Content-Length: 0005",
    b"Content-Length: 99999999999999999999",
    b"X-Request-ID: a",
    b"X-Request-ID: b",
    b"x-request-id: b c",
    b"X-REQUEST-ID: b",
    b"X-Request-ID: ",
    b"X: Content-Length: 5",
    b"X:",
    b" Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Upgrade: h2c",
    b"Host: h",
]
STARTS = [b"POST /a HTTP/1.1", b"GET /a HTTP/1.0", b"CONNECT a:1 HTTP/1.1"]
HEADS = st.builds(
    lambda start, lines: b"\r\n".join([start, *lines, b"", b""]),
    st.sampled_from(STARTS),
    st.lists(st.sampled_from(LINES), max_size=4),
)


def said(raw: bytes, known: KnownHeads) -> object:
    """All that is to be known of a head; None where it is none."""
    reader = RequestReader(known)
    reader.feed(raw)
    try:
        head = reader.next()
    except BadRequest:
        return None
    assert isinstance(head, RequestHead)
    lines, length, given_id, whole = head
    return [getattr(lines, name) for name in lines.__slots__], length, given_id, whole, reader.in_body


def post(*lines: bytes) -> bytes:
    return b"\r\n".join([STARTS[0], *lines, b"", b""])


@example([post(b"Content-Length: 5"), post(b"Content-Length: ")])
@example([post(b"X-Request-ID: a", b"X-Request-ID: "), post(b"X-Request-ID: ", b"X-Request-ID: a")])
@given(st.lists(HEADS, max_size=6))
def test_a_head_is_read_as_if_it_were_the_first(heads: list[bytes]) -> None:
    known = KnownHeads()
    for raw in heads:
        assert said(raw, known) == said(raw, KnownHeads())


def test_the_heads_of_one_client_are_one() -> None:
    known = KnownHeads()
    shared = set()
    for number in range(5):
        reader = RequestReader(known)
        reader.feed(
            b"POST /a HTTP/1.1\r\nContent-Length: %d\r\nX-Request-ID: id-%d\r\n\r\n" % (number, number)
        )
        head = reader.next()
        assert head[1:3] == (number, f"id-{number}")  # type: ignore[index]
        shared.add(head[0])  # type: ignore[index]
    assert len(shared) == 1


def test_only_so_much_is_remembered() -> None:
    known = KnownHeads()
    for number in range(3 * MAX_KNOWN_HEADS):
        said(b"GET /%d HTTP/1.1\r\n\r\n" % number, known)
        assert len(known._lines) <= MAX_KNOWN_HEADS
    assert known._lines
    before = dict(known._lines)
    said(b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * MAX_KNOWN_BYTES), known)
    assert known._lines == before
