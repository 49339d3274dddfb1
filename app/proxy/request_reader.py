"""Where the requests of one connection begin and end in its bytes. No sockets: bytes in, events out.

The parsing is httptools'; what is added are bounds on heads and trailers, which it has not, and that an offer
to go on in another protocol (`Upgrade: h2c`) is left out: httptools takes what follows it for that protocol.
"""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import httptools

from app.access.size_limits import MAX_HEADERS
from app.domain.errors import BadRequest
from app.proxy.forwarded_headers import Headers
from app.proxy.request_head import (
    MAX_KNOWN_BYTES,
    NO_HTTP_2,
    PREFACE_OF_HTTP_2,
    HeadLines,
    KnownHeads,
    RequestHead,
    split_headers,
)

NO_HTTP = "Invalid HTTP request received."
HALF_LINE_END = f"{NO_HTTP} Its lines have to end in CR LF, not in one of them alone."
TOO_LARGE = "The headers are too large, or too many."

MAX_HEAD_BYTES = 65536
"""Of a head, or of trailers. Twice what the access rules answer politely: they need a complete head."""

MAX_HEAD_LINES = 2 * MAX_HEADERS
"""The request's line and the empty one count. To read as many as 64 KB can hold takes seven milliseconds."""

CHUNKED_BYTES = 16384
MAX_CUTS = 100
"""Of a chunked body, so much makes one event, which takes a millisecond at most: else 256 KB that were read
at once could keep everybody else waiting for a tenth of a second."""

GUESS_BYTES = 512
"""Of a head, for its path: no known one is as long."""

END_OF_HEAD = b"\r\n\r\n"
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.I)
_MAY_BE_HTTP = re.compile(rb"[A-Z\-]{1,20}(?:\Z| )")
"""How a head can begin: other bytes would be waited for, as its end never comes."""


class BodyPart(NamedTuple):
    raw: bytes
    """As it came, with the framing of chunks."""
    data: bytes
    last: bool
    is_chunked: bool = False


class RequestReader:
    """`feed` it what comes, and take out event after event, as fast as they can be dealt with."""

    __slots__ = ("_collected", "_data", "_end", "_known", "_left", "_parser", "_quiet", "_raw", "_seen")

    def __init__(self, known: KnownHeads) -> None:
        self._known = known
        self._data = self._raw = b""
        self._seen = 0  # of an incomplete head, where its end cannot begin
        self._end = 0  # of a head that has come as a whole
        self._left = 0  # of a sized body
        self._parser: httptools.HttpRequestParser | None = None  # of a chunked body
        self._collected = _UNREAD
        self._quiet = 0  # what has come of a chunked body without a byte of it

    @property
    def broken_head(self) -> RequestHead:
        """What is known of a request that is not HTTP."""
        headers, _, given_id = split_headers(self._collected.headers)
        target = self._collected.target or _target_in(self._raw)
        method, version = (
            PREFACE_OF_HTTP_2 if self._raw.startswith(b"PRI * HTTP/2.0\r\n") else ("POST", "1.1")
        )
        return RequestHead(HeadLines(method, target, version, headers), 0, given_id, b"")

    @property
    def waiting(self) -> int:
        """Bytes that nobody has taken yet."""
        return len(self._data)

    @property
    def is_between(self) -> bool:
        """No part of a request has come that is not complete."""
        return not (self._data or self.in_body)

    @property
    def in_body(self) -> bool:
        return bool(self._left) or self._parser is not None

    @property
    def has_chunks(self) -> bool:
        """What waits is of a chunked body."""
        return self._parser is not None and bool(self._data)

    @property
    def has_end(self) -> bool:
        """What waits has the end of a sized body."""
        return 0 < self._left <= len(self._data)

    def path(self) -> str | None:
        """Of a head that waits as a whole: the beginning of its path, read without its headers. It is of no
        use but for a guess what the request is about. Empty for one that is large, whole or not, or that will
        be refused: to look at it takes time."""
        if not self._data or self.in_body:
            return None
        beginning = self._data[:MAX_KNOWN_BYTES]
        if len(beginning) < len(self._data) and END_OF_HEAD not in beginning.lstrip(b"\r\n"):
            self._raw, self._collected = beginning, _UNREAD
            return ""
        if not self._has_whole_head():
            return "" if self._fault() else None
        return _target_in(self._data[:GUESS_BYTES]).partition(b"?")[0].decode("latin-1")

    def feed(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data

    def next(self) -> RequestHead | BodyPart | None:
        """The next event that is complete. Raises `BadRequest` for what is not HTTP."""
        if not self._data:
            return None
        if self._left:
            return self._sized()
        return self._head() if self._parser is None else self._chunked()

    # --- heads

    def _has_whole_head(self) -> bool:
        if not self._end:
            if not self._seen:
                self._data = self._data.lstrip(b"\r\n")
            self._end = self._data.find(END_OF_HEAD, self._seen) + len(END_OF_HEAD)
            if self._end < len(END_OF_HEAD):
                self._end = 0
        return self._end > 0

    def _head(self) -> RequestHead | None:
        if not self._has_whole_head():
            self._collected = _UNREAD
            self._check_unfinished()
            self._seen = max(len(self._data) - len(END_OF_HEAD) + 1, 0)
            return None
        raw, self._data = self._data[: self._end], self._data[self._end :]
        self._end = self._seen = 0
        head = self._known.read(raw)
        if head is None:
            head = self._parsed(raw)
            self._known.add(head)
        self._left = head.length or 0
        return head

    def _fault(self) -> str:
        """Why what waits, without an end, will be no head; empty where it may be one."""
        if len(self._data) > MAX_HEAD_BYTES or self._data.count(b"\n") > MAX_HEAD_LINES:
            return TOO_LARGE
        if self._data and not _MAY_BE_HTTP.match(self._data):
            return NO_HTTP
        return HALF_LINE_END if _has_half_line_end(self._data, self._seen) else ""

    def _check_unfinished(self) -> None:
        self._raw = self._data
        self._check_size(self._data)
        if fault := self._fault():
            raise BadRequest(fault)

    def _check_size(self, data: bytes) -> None:
        head = data[:MAX_HEAD_BYTES]
        *lines, rest = head.split(b"\n", MAX_HEAD_LINES + 1)
        if len(data) > MAX_HEAD_BYTES or len(lines) > MAX_HEAD_LINES:
            self._collected = _Collected()  # who asked for what is told with the error
            enough = head[: len(head) - len(rest) + 1]  # a header ends where the next one begins
            with contextlib.suppress(BadRequest):
                _feed(httptools.HttpRequestParser(self._collected), enough)
            raise BadRequest(TOO_LARGE)

    def _parsed(self, raw: bytes) -> RequestHead:
        self._raw = raw
        self._check_size(raw)
        raw = _UPGRADE.sub(b"", raw)
        collected = self._collected = _Collected()
        parser = httptools.HttpRequestParser(collected)
        _feed(parser, raw)
        if parser.get_http_version() == "2.0":  # of its preface uvicorn would wait for the rest, for ever
            raise BadRequest(NO_HTTP_2)
        collected.in_body = True
        method = parser.get_method().decode("ascii")
        headers, length, given_id = split_headers(collected.headers)
        lines = HeadLines(method, collected.target, parser.get_http_version(), headers)
        if lines.is_chunked:
            self._parser, self._quiet = parser, 0
            return RequestHead(lines, None, given_id, raw)
        return RequestHead(lines, length if method != "CONNECT" else 0, given_id, raw)

    # --- bodies

    def _sized(self) -> BodyPart:
        data, self._data = self._data[: self._left], self._data[self._left :]
        self._left -= len(data)
        return BodyPart(data, data, not self._left)

    def _chunked(self) -> BodyPart:
        """A chunked body ends with an empty line: cut there, the parser tells whether it was the last one."""
        assert self._parser is not None
        data, rest = self._data[:CHUNKED_BYTES], self._data[CHUNKED_BYTES:]
        collected, position, cuts = self._collected, 0, 0
        while position < len(data) and not collected.is_complete and cuts < MAX_CUTS:
            cuts += 1
            end = _end_of_line(data, position)
            collected.has_data = False
            _feed(self._parser, data[position:end])
            self._quiet = 0 if collected.has_data else self._quiet + end - position
            if self._quiet > MAX_HEAD_BYTES:
                raise BadRequest("The trailers are too large.")
            position = end
        self._data = data[position:] + rest
        if collected.is_complete:
            self._parser = None
        body, collected.body = b"".join(collected.body), []
        return BodyPart(data[:position], body, collected.is_complete, is_chunked=True)


def _target_in(raw: bytes) -> bytes:
    """Of a request line that is not HTTP."""
    parts = raw[:MAX_HEAD_BYTES].partition(b"\r\n")[0].split(b" ", 2)
    return parts[1] if len(parts) > 1 else b""


def _has_half_line_end(data: bytes, start: int) -> bool:
    """The parser takes none; whoever writes them writes no other end of a head. To count is much faster than
    to search: 64 KB take 0.2 ms, a regular expression took up to 3."""
    if start and data[start : start + 1] == b"\n":
        start -= 1  # not to cut a whole one
    whole = data.count(b"\r\n", start)
    return data.count(b"\n", start) > whole or data.count(b"\r", start, len(data) - 1) > whole


def _end_of_line(data: bytes, position: int) -> int:
    """Where the next empty line ends. It may have begun in the piece before: then byte by byte."""
    if position < len(END_OF_HEAD) and data[position] in b"\r\n":
        return position + 1
    end = data.find(END_OF_HEAD, position)
    return len(data) if end < 0 else end + len(END_OF_HEAD)


class _Collected:
    """What a parser says of one request. It does not know the parser: no circle is left behind."""

    __slots__ = ("body", "has_data", "headers", "in_body", "is_complete", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.in_body = self.has_data = self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_body:  # trailers are ignored: the headers have been checked, trailers have not
            self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)
        self.has_data = True

    def on_message_complete(self) -> None:
        self.is_complete = True


_UNREAD = _Collected()
"""Of a head that has not been parsed."""


def _feed(parser: httptools.HttpRequestParser, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:  # CONNECT
        pass
    except httptools.HttpParserError:
        raise BadRequest(NO_HTTP) from None
