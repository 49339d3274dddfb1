"""The head of a request. A client sends the same one again and again: it is parsed once."""

from __future__ import annotations

import re
from typing import NamedTuple

from app.access.request_id import USABLE_ID
from app.proxy.forwarded_headers import Headers

MAX_KNOWN_HEADS = 256
MAX_KNOWN_BYTES = 4096
"""Of one head: so much at most is kept of what clients send."""

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d{1,15})(?=\r\n)")
_ID = re.compile(rb"\r\n[Xx]-[Rr]equest-[Ii][Dd]: (%b)(?=\r\n)" % USABLE_ID.encode())
_USABLE_ID = re.compile(rb"%b\Z" % USABLE_ID.encode())


PREFACE_OF_HTTP_2 = ("PRI", "2.0")
"""Method and version of what only looks like a request: such a client reads nothing but frames."""

NO_HTTP_2 = "HTTP/2 is not spoken here, HTTP/1.1 is."


class HeadLines:
    """What a head says but for the length of the body and the id of the request. Never changed."""

    __slots__ = (
        "expects_continue",
        "headers",
        "is_chunked",
        "keep_alive",
        "method",
        "path",
        "target",
        "version",
    )

    def __init__(self, method: str, target: bytes, version: str, headers: Headers) -> None:
        """Names of headers are in lower case."""
        self.method, self.target, self.version = method, target, version
        self.path = target.partition(b"?")[0].decode("latin-1")
        """Encoded, without the query."""
        self.headers = headers
        self.is_chunked = any(name == b"transfer-encoding" for name, _ in headers)
        ends = any(name == b"connection" and b"close" in value.lower() for name, value in headers)
        self.keep_alive = version == "1.1" and not ends
        self.expects_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)


class RequestHead(NamedTuple):
    lines: HeadLines
    """Those of other requests may be the same object."""
    length: int | None
    """Of the body, in bytes; None for a chunked one."""
    given_id: str | None
    """`X-Request-ID`, where it is one that can be used."""
    raw: bytes
    """As it came, but for an upgrade."""

    @property
    def method(self) -> str:
        return self.lines.method

    @property
    def path(self) -> str:
        return self.lines.path


class KnownHeads:
    """Those of all connections."""

    def __init__(self) -> None:
        self._lines: dict[_Key, HeadLines] = {}

    def read(self, raw: bytes) -> RequestHead | None:
        """None for a head that is not known: one that differs in more from one that was parsed than in its
        length and its id."""
        if len(raw) > MAX_KNOWN_BYTES:
            return None
        key, length, given_id = _split(raw)
        lines = self._lines.get(key)
        return None if lines is None else RequestHead(lines, length, given_id, raw)

    def add(self, head: RequestHead) -> None:
        """It was parsed. It is known from now on if it can be read without a parser with the same result."""
        if len(head.raw) > MAX_KNOWN_BYTES:
            return
        key, length, given_id = _split(head.raw)
        if (length, given_id) != (head.length, head.given_id):
            return
        if len(self._lines) >= MAX_KNOWN_HEADS:
            self._lines.clear()
        self._lines[key] = head.lines


_Key = tuple[bytes, int, int]


def _split(raw: bytes) -> tuple[_Key, int, str | None]:
    """What many heads have in common; the length and the id of this one. A second of either, or one that is
    written in another way, is in common. The places are part of it: no two heads with different headers have
    the same key."""
    length = length_at = id_at = 0
    given_id = None
    if (found := _LENGTH.search(raw)) is not None:
        length_at, end = found.span(1)
        length, raw = int(raw[length_at:end]), raw[:length_at] + raw[end:]
    if (found := _ID.search(raw)) is not None:
        id_at, end = found.span(1)
        given_id, raw = raw[id_at:end].decode(), raw[:id_at] + raw[end:]
    return (raw, length_at, id_at), length, given_id


def split_headers(headers: Headers) -> tuple[Headers, int, str | None]:
    """What many heads have in common; the length and the id of this one."""
    length, given_id, rest, ids = 0, None, [], 0
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
            continue
        if name == b"x-request-id":
            ids += 1
            if ids == 1 and _USABLE_ID.match(value):
                given_id = value.decode()
                continue
        rest.append((name, value))
    return rest, length, given_id
