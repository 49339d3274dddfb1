"""Where an answer of llama-server begins and ends in the bytes of its connection. No sockets.

The parsing is httptools'. It sees a head once: llama-server begins its answers with the same ones, but for
the length of the body, and a body of a known length need not be parsed.
"""

from __future__ import annotations

import re
from enum import Enum

import httptools

from app.proxy.forwarded_headers import Headers, as_lines, passed_back

MAX_HEAD_BYTES = 65536
MAX_KNOWN_HEADS = 64
MAX_KNOWN_BYTES = 4096

EVENT_STREAM = b"text/event-stream"
END_OF_HEAD = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d{1,15})(?=\r\n)")
_BEGINNING = b"HTTP/1."


class NotHttp(Exception):
    """What came is no answer."""


class AnswerHead:
    """What a head says but for the length of the body. Never changed: other answers may have the same one."""

    __slots__ = ("headers", "is_chunked", "is_event_stream", "keeps_connection", "lines", "status")

    def __init__(self, status: int, headers: Headers, *, version: str = "1.1") -> None:
        """Names of headers are in lower case."""
        self.status, self.headers = status, headers
        self.is_event_stream = any(
            n == b"content-type" and v.lower().startswith(EVENT_STREAM) for n, v in headers
        )
        self.is_chunked = any(name == b"transfer-encoding" for name, _ in headers)
        ends = any(name == b"connection" and b"close" in value.lower() for name, value in headers)
        self.keeps_connection = version == "1.1" and not ends
        self.lines = as_lines(passed_back(headers, self.is_event_stream))
        """What of it is for the client."""


class KnownAnswerHeads:
    """Those of all connections, by their bytes without the digits of the length, and the place of these."""

    def __init__(self) -> None:
        self._heads: dict[tuple[bytes, int], AnswerHead] = {}

    def read(self, raw: bytes) -> tuple[AnswerHead, int | None]:
        """The head, and the length of the body. Raises `NotHttp`."""
        length, place, rest = None, 0, raw
        if (found := _LENGTH.search(raw)) is not None:
            place, end = found.span(1)
            length, rest = int(raw[place:end]), raw[:place] + raw[end:]
        head = self._heads.get((rest, place))
        if head is not None:
            return head, length
        head, parsed_length = _parsed(raw)
        if parsed_length == length and len(raw) <= MAX_KNOWN_BYTES:
            if len(self._heads) >= MAX_KNOWN_HEADS:
                self._heads.clear()
            self._heads[rest, place] = head
        return head, parsed_length


class Stage(Enum):
    HEAD = "its head is not complete"
    SIZED = "its body has an announced length"
    CHUNKED = "its body comes in chunks"
    UNTIL_CLOSE = "its body ends with the connection"
    COMPLETE = "all of it has come"


class AnswerReader:
    """Reads the answers of one connection, one after the other."""

    __slots__ = (
        "_collected",
        "_known",
        "_left",
        "_parser",
        "_rest",
        "has_body",
        "has_excess",
        "length",
        "stage",
    )

    def __init__(self, known: KnownAnswerHeads) -> None:
        self._known = known
        self.expect(has_body=True)

    def expect(self, *, has_body: bool) -> None:
        """The next answer. `has_body`: unless its status says that there is none."""
        self.stage, self.has_body, self.has_excess = Stage.HEAD, has_body, False
        self.length: int | None = None
        """Of the body, where it was announced."""
        self._rest, self._left = b"", 0
        self._parser: httptools.HttpResponseParser | None = None

    def feed(self, data: bytes) -> tuple[AnswerHead | None, bytes]:
        """The head, when it becomes complete, and some of the body. Raises `NotHttp`."""
        head = None
        if self.stage is Stage.HEAD:
            head, data = self._read_head(data)
            if head is None:
                return None, b""
        if self.stage is Stage.CHUNKED:
            return head, self._read_chunks(data)
        return head, self._read_body(data)

    def _read_head(self, data: bytes) -> tuple[AnswerHead | None, bytes]:
        data = self._rest + data if self._rest else data
        while (end := data.find(END_OF_HEAD)) >= 0:
            end += len(END_OF_HEAD)
            raw, data = data[:end], data[end:]
            head, length = self._known.read(raw)
            if head.status >= 200:  # else the real answer follows
                self._begin_body(raw, head, length)
                return head, data
        if data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
            raise NotHttp("the answer is not HTTP")
        if len(data) > MAX_HEAD_BYTES:
            raise NotHttp("the answer's headers do not end")
        self._rest = data
        return None, b""

    def _begin_body(self, raw: bytes, head: AnswerHead, length: int | None) -> None:
        self.length = length
        if not self.has_body or head.status in (204, 304):  # its length is that of a body that does not come
            self.stage = Stage.COMPLETE
        elif head.is_chunked:
            self.stage, self._collected = Stage.CHUNKED, _Collected()
            self._parser = httptools.HttpResponseParser(self._collected)
            self._parser.feed_data(raw)
        elif length is None:
            self.stage = Stage.UNTIL_CLOSE
        else:
            self.stage, self._left = Stage.SIZED if length else Stage.COMPLETE, length

    def _read_body(self, data: bytes) -> bytes:
        stage = self.stage
        if stage is Stage.SIZED:
            self._left -= len(data)
            if self._left > 0:
                return data
            self.stage, self.has_excess = Stage.COMPLETE, self._left < 0
            return data[: self._left] if self._left else data
        if stage is Stage.COMPLETE:
            self.has_excess = self.has_excess or bool(data)
            return b""
        return data

    def _read_chunks(self, data: bytes) -> bytes:
        assert self._parser is not None
        collected = self._collected
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not collected.is_complete:  # else it is what follows the answer
                raise NotHttp(f"the answer is not HTTP: {error!r}") from None
        if collected.is_complete:
            self.stage, self._parser = Stage.COMPLETE, None
        body = b"".join(collected.body)
        collected.body.clear()
        return body


class _Collected:
    """What a parser says of one answer. It does not know the parser: no circle is left behind."""

    __slots__ = ("body", "headers", "is_complete", "on_body")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.on_body = self.body.append  # called for every chunk
        self.is_complete = False

    def on_message_begin(self) -> None:
        if self.is_complete:  # not a byte of what follows may get into this answer: the parser stops here
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))  # a trailer comes when nobody reads them any more

    def on_message_complete(self) -> None:
        self.is_complete = True


def _parsed(raw: bytes) -> tuple[AnswerHead, int | None]:
    collected = _Collected()
    parser = httptools.HttpResponseParser(collected)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise NotHttp(f"the answer is not HTTP: {error!r}") from None
    status, lengths = (
        parser.get_status_code(),
        [int(v) for n, v in collected.headers if n == b"content-length"],
    )
    if not 100 <= status < 600:
        raise NotHttp(f"the answer is not HTTP: its status is {status}")
    headers = [header for header in collected.headers if header[0] != b"content-length"]
    head = AnswerHead(status, headers, version=parser.get_http_version())
    return head, lengths[0] if lengths else None
