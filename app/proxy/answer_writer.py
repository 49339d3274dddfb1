"""HTTP/1.1 as bytes: the one writer of heads, chunks and errors, for every answer that is ours."""

from __future__ import annotations

import struct
from http import HTTPStatus

from app.domain.errors import RouterError
from app.proxy.dialects.dialect import Dialect, retry_headers
from app.proxy.dialects.sse_format import as_json
from app.proxy.forwarded_headers import Headers, as_lines, own_lines
from app.proxy.request_head import NO_HTTP_2, PREFACE_OF_HTTP_2, HeadLines

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"

HTTP_1_1_REQUIRED = 13
"""HTTP/2's number for it."""


def _frame(kind: int, payload: bytes) -> bytes:
    """Of HTTP/2, about the connection."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, 0, 0) + payload


NO_MORE_HTTP_2 = _frame(4, b"") + _frame(7, struct.pack(">II", 0, HTTP_1_1_REQUIRED) + NO_HTTP_2.encode())
"""No settings, and the end of a connection of which no request was looked at."""


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES = {status: _status_line(status) for status in range(100, 600)}


class AnswerWriter:
    """Frames the answers of one connection, one after the other."""

    __slots__ = ("_default_headers", "_defaults", "_has_body", "_head", "_is_chunked")

    def __init__(self) -> None:
        self._head = self._defaults = b""
        self._default_headers: Headers = []
        self._has_body = self._is_chunked = False

    def start(
        self,
        asked: HeadLines,
        status: int,
        lines: bytes,
        length: int | None,
        defaults: Headers,
        *,
        keep_alive: bool,
    ) -> bool:
        """`lines`: the headers; nothing in them can end a line, it has been through a parser.

        `length`: of the body, where it is known. False: the connection has to end with the answer.
        """
        if (asked.method, asked.version) == PREFACE_OF_HTTP_2:
            self._head, self._has_body = NO_MORE_HTTP_2, False
            return False
        self._has_body = has_body = asked.method != "HEAD" and status not in (204, 304)
        self._is_chunked = has_body and length is None and asked.version == "1.1"
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        else:
            framing = CHUNKED if self._is_chunked else b""
            keep_alive = keep_alive and (self._is_chunked or not has_body)
        if defaults is not self._default_headers:  # uvicorn makes a new list every second
            self._default_headers, self._defaults = defaults, as_lines(defaults)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        self._head = b"%b%b%b%b%b" % (STATUS_LINES[status], self._defaults, lines, framing, end)
        return keep_alive

    def body(self, data: bytes, *, last: bool) -> bytes:
        """What to write for it; with the first piece of a body goes the head."""
        if not self._has_body:
            data = b""
        elif self._is_chunked:  # an empty chunk would be the last one
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if last:
                data += LAST_CHUNK
        if self._head:
            data, self._head = self._head + data, b""
        return data


# --- errors


def error_answer(error: RouterError, dialect: Dialect, request_id: str) -> tuple[int, bytes, bytes]:
    """Status, headers, as lines, and body of an answer that is an error."""
    told = retry_headers(error).items()
    headers = [(b"content-type", dialect.json_type)]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in told]
    return dialect.status(error), as_lines(headers) + own_lines(request_id), as_json(dialect.body(error))
