"""How large a request may be: its target, its headers, its body."""

from __future__ import annotations

from itertools import chain

from app.access.header_lookup import Headers
from app.domain.errors import HeadersTooLarge, RequestTooLarge, TargetTooLong
from app.domain.units import MIB

MAX_TARGET_BYTES = 8192
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32768


def check_target(size: int) -> None:
    """Of path and query; bytes. Routes are regular expressions, and an alias may stand anywhere in a path.

    Raises `TargetTooLong`.
    """
    if size > MAX_TARGET_BYTES:
        raise TargetTooLong(f"the path and its query may have at most {MAX_TARGET_BYTES} bytes")


def check_headers(headers: Headers) -> None:
    """Raises `HeadersTooLarge`."""
    size = sum(map(len, chain.from_iterable(headers.raw)))
    if size > MAX_HEADER_BYTES or len(headers.raw) > MAX_HEADERS:
        raise HeadersTooLarge(f"send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together")


def announced_length(headers: Headers) -> int:
    """Of the body. What is no number is left to the server; the body is counted anyway."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isascii() and text.isdigit() else 0


class BodyLimit:
    """`api.max_body_mb`."""

    def __init__(self, mb: float) -> None:
        self._mb, self.most_bytes = mb, int(mb * MIB)

    def check(self, size: int) -> None:
        """Of a body, announced or come; bytes. Raises `RequestTooLarge`."""
        if size > self.most_bytes:
            raise RequestTooLarge(f"the body is larger than {self._mb:g} MB; raise api.max_body_mb")
