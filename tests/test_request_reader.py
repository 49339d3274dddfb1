"""Bytes in, requests out: wherever they are cut, whatever they are."""

from __future__ import annotations

import pytest

from app.domain.errors import BadRequest
from app.proxy.request_head import MAX_KNOWN_BYTES, KnownHeads, RequestHead
from app.proxy.request_reader import MAX_HEAD_BYTES, MAX_HEAD_LINES, BodyPart, RequestReader

HEAD = b"POST /a HTTP/1.1\r\nHost: h\r\n"
SIZED = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED_HEAD = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"4\r\n\r\n\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
EMPTY = b"GET /b HTTP/1.0\r\n\r\n"
LARGE_CHUNK = b"%x\r\n%b\r\n" % (2 * MAX_HEAD_BYTES, bytes(2 * MAX_HEAD_BYTES))


def read(*pieces: bytes) -> list[RequestHead | BodyPart]:
    reader, events = RequestReader(KnownHeads()), []
    for piece in pieces:
        reader.feed(piece)
        while (event := reader.next()) is not None:
            events.append(event)
    return events


def requests(events: list[RequestHead | BodyPart]) -> list[tuple[RequestHead, bytes]]:
    """Heads and whole bodies; fails for what is not complete."""
    found: list[tuple[RequestHead, bytes]] = []
    parts: list[BodyPart] = []
    for event in events:
        if isinstance(event, RequestHead):
            assert not parts
            found.append((event, b""))
        else:
            parts.append(event)
            if event.last:
                found[-1] = (found[-1][0], b"".join(part.data for part in parts))
                parts.clear()
    assert not parts
    return found


WHOLE = [(SIZED, b"hello"), (CHUNKED, b"\r\n\r\nabc"), (EMPTY, b""), (HEAD + b"\r\n", b"")]


@pytest.mark.parametrize(("said", "body"), WHOLE)
@pytest.mark.parametrize(("behind", "other"), [(b"", []), (SIZED, [b"hello"]), (CHUNKED, [b"\r\n\r\nabc"])])
def test_it_does_not_matter_where_requests_are_cut_in_two(
    said: bytes, body: bytes, behind: bytes, other: list[bytes]
) -> None:
    whole = said + behind
    for cut in range(1, len(whole)):
        found = requests(read(whole[:cut], whole[cut:]))
        assert [data for _, data in found] == [body, *other], cut
    found = requests(read(*(whole[i : i + 1] for i in range(len(whole)))))
    assert [data for _, data in found] == [body, *other]


def test_a_head_tells_how_its_body_is_framed() -> None:
    sized, chunked, empty = (requests(read(said))[0][0] for said in (SIZED, CHUNKED, EMPTY))
    assert (sized.method, sized.lines.target, sized.lines.version, sized.length) == ("POST", b"/a", "1.1", 5)
    assert (sized.lines.headers, sized.lines.keep_alive) == ([(b"host", b"h")], True)
    assert (chunked.length, chunked.lines.keep_alive) == (None, True)
    assert (empty.method, empty.lines.version, empty.length, empty.lines.keep_alive) == (
        "GET",
        "1.0",
        0,
        False,
    )


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
def test_a_client_may_want_the_connection_closed(value: bytes) -> None:
    (head,) = read(HEAD + b"Connection: " + value + b"\r\n\r\n")
    assert isinstance(head, RequestHead)
    assert not head.lines.keep_alive


def test_what_it_read_comes_out_as_it_came() -> None:
    """But for an offer of another protocol, which is not heard; what looks like one in a body stays."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nuPGRADE: h2c\r\n"
    body = b"\r\nUpgrade: h2c\r\n\r\n"
    said = HEAD + offer + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    events = read(said + CHUNKED)
    assert b"".join(event.raw for event in events) == said.replace(b"uPGRADE: h2c\r\n", b"") + CHUNKED
    assert requests(events)[0][1] == body


def test_trailers_are_no_headers() -> None:
    ((head, _),) = requests(read(CHUNKED))
    assert [name for name, _ in head.lines.headers] == [b"host", b"transfer-encoding"]


def test_empty_lines_before_a_request_are_nothing() -> None:
    assert len(requests(read(b"\r\n" * 8000, SIZED, b"\r\n\r\n", SIZED))) == 2
    reader = RequestReader(KnownHeads())
    reader.feed(SIZED + b"\r\n")
    while reader.next() is not None:
        pass
    assert reader.is_between


def test_it_knows_whether_a_request_is_under_way() -> None:
    for said in (HEAD, SIZED[:-1], CHUNKED[:-1]):
        reader = RequestReader(KnownHeads())
        assert reader.is_between
        reader.feed(said)
        while reader.next() is not None:
            pass
        assert not reader.is_between
        reader.feed({HEAD: b"\r\n", SIZED[:-1]: b"o", CHUNKED[:-1]: b"\n"}[said])
        while reader.next() is not None:
            pass
        assert reader.is_between


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HELLO\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n" + b"\r\n\r\n",
        HEAD + b"Content-Length: abc\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        HEAD + b"X: a\x00b\r\n\r\n",
        HEAD + b"X : a\r\n\r\n",
        HEAD + b"X: a\r\n b\r\n\r\n",
        CHUNKED_HEAD + b"no number\r\n",
        CHUNKED_HEAD + b"3\r\nabcd\r\n",
    ],
)
def test_what_is_no_http_is_refused(garbage: bytes) -> None:
    with pytest.raises(BadRequest):
        read(garbage)


GOOD_LINES = (b"", b"Host: h\r\n", b"Host: h\r\nX: " + b"a" * 5000 + b"\r\n")


@pytest.mark.parametrize("before", GOOD_LINES)
@pytest.mark.parametrize("end", [b"\n", b"\rX"])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_a_line_with_half_an_end_is_refused_at_once(before: bytes, end: bytes, in_bytes: bool) -> None:
    """The end of the head that the parser knows never comes."""
    for said in (b"GET / HTTP/1.1" + end, b"GET / HTTP/1.1\r\n%bX: a%b" % (before, end)):
        with pytest.raises(BadRequest, match="CR LF"):
            read(*(said[i : i + 1] for i in range(len(said)))) if in_bytes else read(said)


# --- memory


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX: ", b"GET /", HEAD + b"X-"])
@pytest.mark.parametrize("before", [b"", SIZED, CHUNKED_HEAD + LARGE_CHUNK + b"0\r\n\r\n"])
def test_a_head_that_does_not_end_is_refused(start: bytes, before: bytes) -> None:
    """However large what came before it was."""
    left = MAX_HEAD_BYTES - len(start)
    assert len(requests(read(before + start, b"a" * left))) == bool(before)
    with pytest.raises(BadRequest, match="too large"):
        read(before + start, b"a" * (left + 1))


@pytest.mark.parametrize("end", [b"", b"\r\n"])
@pytest.mark.parametrize("pieces", [1, MAX_HEAD_LINES + 1])
def test_a_head_of_many_lines_is_refused_and_read_only_in_part(end: bytes, pieces: int) -> None:
    """To read 10,000 headers takes milliseconds, and many can send them at once."""
    line, few = b"a:b\r\n", MAX_HEAD_LINES - HEAD.count(b"\n") - 1
    assert len(requests(read(HEAD + line * few + b"\r\n"))) == 1
    reader = RequestReader(KnownHeads())
    with pytest.raises(BadRequest, match="too many"):
        for piece in [line * (10_000 // pieces)] * pieces:
            reader.feed((b"" if reader.waiting else HEAD) + piece)
            reader.next()
        reader.feed(end)
        reader.next()
    assert len(reader.broken_head.lines.headers) <= MAX_HEAD_LINES
    assert reader.broken_head.path == "/a"


def test_a_whole_head_can_be_too_large() -> None:
    with pytest.raises(BadRequest, match="too large"):
        read(HEAD + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n")


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"0\r\n", b"3;x="])
def test_trailers_and_extensions_that_do_not_end_are_refused(start: bytes) -> None:
    more = b"a: b\r\n" if start == b"0\r\n" else b"a"
    with pytest.raises(BadRequest):
        read(CHUNKED_HEAD + LARGE_CHUNK + start, *[more] * (MAX_HEAD_BYTES + 1))


def test_chunks_are_no_trailers_wherever_they_are_cut() -> None:
    pieces = [LARGE_CHUNK + b"5\r\n", b"abcde\r\n"] * 4
    parts = read(CHUNKED_HEAD, *pieces, b"0\r\n\r\n")
    assert len(requests(parts)[0][1]) == 4 * (2 * MAX_HEAD_BYTES + 5)


def test_what_is_known_of_a_head_that_is_too_large_is_told_with_its_error() -> None:
    """The shape of the error depends on the path, and the client's id is given back."""
    for end in (b"\r\n\r\n", b""):
        reader = RequestReader(KnownHeads())
        reader.feed(b"POST /v1/messages HTTP/1.1\r\nX-Request-ID: mine\r\nX: " + b"a" * MAX_HEAD_BYTES + end)
        with pytest.raises(BadRequest, match="too large"):
            reader.next()
        assert (reader.broken_head.path, reader.broken_head.given_id) == ("/v1/messages", "mine")


def test_a_target_that_is_not_http_is_known_all_the_same() -> None:
    reader = RequestReader(KnownHeads())
    reader.feed("POST /v1/messages?\u00e9 HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    with pytest.raises(BadRequest):
        reader.next()
    assert reader.broken_head.path == "/v1/messages"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"GET /a?b=/c HTTP/1.1\r\nHost: h\r\n\r\nGET /d", "/a"),
        (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", "/"),
        (b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 1_000), "/" + "a" * 507),
        (b"GET /a HTTP/1.1\r\nX: %b\r\n\r\n" % (b"a" * MAX_KNOWN_BYTES), ""),
        (b"GET /a HTTP/1.1\r\nX: %b" % (b"a" * MAX_HEAD_BYTES), ""),
        (b"GET /a HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD_LINES, ""),
        (b"GET /a HTTP/1.1\nHost: h", ""),
        (b"garbage!", ""),
        (b"GET \xff HTTP/1.1\r\n\r\n", "\xff"),
        (b"garbage\r\nwith lines\r\n\r\n", ""),
        (b"GET /a HTTP/1.1\r\nHost: h\r\n", None),
        (b"", None),
    ],
)
def test_what_a_whole_head_asks_for_is_seen_before_it_is_read(data: bytes, path: str | None) -> None:
    at_once, in_bytes = RequestReader(KnownHeads()), RequestReader(KnownHeads())
    at_once.feed(data)
    for at in range(len(data)):
        in_bytes.feed(data[at : at + 1])
        in_bytes.path()
    assert (at_once.path(), in_bytes.path()) == (path, path)


def test_in_a_body_no_head_waits() -> None:
    reader = RequestReader(KnownHeads())
    reader.feed(b"POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\nGET /a HTTP/1.1\r\n\r\n")
    assert reader.path() == "/"
    assert isinstance(reader.next(), RequestHead)
    assert (reader.path(), reader.has_end) == (None, False)
    reader.feed(b" " * 11 + b"GET /b HTTP/1.1\r\n\r\n")
    assert (reader.path(), reader.has_end) == (None, True)
    assert isinstance(reader.next(), BodyPart)
    assert (reader.path(), reader.has_end) == ("/b", False)
