"""`Content-Encoding` of a request's body: gzip is undone here, since not every llama-server can. Pure."""

from __future__ import annotations

import zlib

from app.access.header_lookup import Headers
from app.domain.errors import BadRequest, RequestTooLarge, UnsupportedEncoding

_GZIP = frozenset({"gzip", "x-gzip"})
_WITH_GZIP_HEADER = 31
"""zlib's window bits: the largest window, framed as gzip."""


def is_gzip(headers: Headers) -> bool:
    """Raises `UnsupportedEncoding` for what is neither gzip nor plain."""
    given = [
        name.strip().lower() for value in headers.getlist("content-encoding") for name in value.split(",")
    ]
    encodings = [name for name in given if name not in ("", "identity")]
    if not encodings:
        return False
    if len(encodings) == 1 and encodings[0] in _GZIP:
        return True
    raise UnsupportedEncoding(
        f"the Content-Encoding {', '.join(encodings)[:80]!r} is not taken; send the body plain or as gzip"
    )


def unpacked_size(body: bytes | bytearray) -> int:
    """What it says that it becomes (RFC 1952, ISIZE); more than that `gunzip` never makes of it."""
    return int.from_bytes(body[-4:], "little")


def gunzip(body: bytes | bytearray, limit: int) -> bytes:
    """Never makes more than `limit` bytes, whatever they would become.

    Raises `RequestTooLarge` where they would be more, `BadRequest` for what is not one whole gzip stream: RFC
    1952 lets several follow each other, but no client sends that, and to split it takes quadratic time.
    """
    stream, most = zlib.decompressobj(_WITH_GZIP_HEADER), min(unpacked_size(body), limit)
    try:
        plain = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not valid gzip: {error}") from None
    if len(plain) > limit:
        raise RequestTooLarge(f"the body is larger than {limit} bytes when it is unpacked")
    if len(plain) > most:
        raise BadRequest("the body is not valid gzip: it becomes more than it says")
    if not stream.eof or stream.unused_data:
        raise BadRequest(
            f"the body is not valid gzip: {'something follows it' if stream.eof else 'it ends too early'}"
        )
    return plain
