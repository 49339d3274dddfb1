"""Which headers of a request go on to llama-server, and which of its answer come back to the client.

Of a request to a model a few headers pass, those that llama-server heeds. `/upstream` is a tunnel: everything
passes that is meant for the far end (RFC 9110, section 7.6.1). Names are in lower case, as ASGI has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from app.access.request_id import ON_EVERY_ANSWER, OURS

Headers = list[tuple[bytes, bytes]]
Raw = Iterable[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_OF_THIS_CONNECTION = frozenset({b"content-length", b"content-encoding", b"expect", b"host"})
"""Written anew for the connection to llama-server, which gets the body whole and unpacked."""

_CREDENTIALS = frozenset({b"authorization", b"cookie", b"x-api-key"})
"""They open the router. llama-server has a key of its own, which the router adds."""

CONVERSATION_ID = b"x-conversation-id"
"""With it llama-server goes on computing when its client has left, and ignores SIGTERM."""

_FOR_A_MODEL = frozenset({b"accept", b"content-type", b"range", b"if-none-match", b"anthropic-version"})
"""No `accept-encoding`: tokens are counted in the answer as it comes."""

_NEVER = _HOP_BY_HOP | _OF_THIS_CONNECTION | _CREDENTIALS | {CONVERSATION_ID}
_NOT_PASSED_BACK = _HOP_BY_HOP | OURS | {
    b"date", b"access-control-allow-origin", b"access-control-allow-credentials",
}  # fmt: skip
"""Which pages may read an answer is a matter of the router's own configuration."""

_SET_FOR_STREAMS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_NAMES_SET_FOR_STREAMS = frozenset(name for name, _ in _SET_FOR_STREAMS)

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")


def to_model(raw: Raw) -> Headers:
    """For a request that the router understands. The last of several of one name counts."""
    return list({name: value for name, value in raw if name in _FOR_A_MODEL and _is_whole(value)}.items())


def as_json(headers: Headers) -> Headers:
    """What the body is, whatever its client calls it: of a form llama-server takes 8 KB."""
    others = [header for header in headers if header[0] != b"content-type"]
    return [*others, (b"content-type", b"application/json")]


def through_tunnel(raw: Raw) -> Headers:
    """All that is meant for the far end, in its order and as often as it stands there."""
    raw = list(raw)
    dropped = _NEVER | _named_by_connection(raw)
    if any(name == b"content-type" for name, _ in raw):  # of a body: tokens are counted in what comes of it
        dropped |= {b"accept-encoding"}
    return [(n, v) for n, v in raw if n not in dropped and _NAME.fullmatch(n) and _is_whole(v)]


def as_lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def from_lines(lines: bytes) -> Headers:
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n")[:-1])
    return [(name, value) for name, _, value in pairs]


_ON_EVERY_ANSWER = as_lines(ON_EVERY_ANSWER)


def own_lines(request_id: str) -> bytes:
    """On every answer."""
    return b"x-request-id: %b\r\n%b" % (request_id.encode(), _ON_EVERY_ANSWER)


def passed_back(raw: Raw, event_stream: bool) -> Headers:
    """Of an answer, what is meant for the client; an event stream must not be held back on its way."""
    raw = list(raw)
    named = _named_by_connection(raw)
    headers = [(n, v) for n, v in raw if n not in _NOT_PASSED_BACK and n not in named]
    if event_stream:
        headers = [header for header in headers if header[0] not in _NAMES_SET_FOR_STREAMS]
        headers += _SET_FOR_STREAMS
    return headers


def _named_by_connection(raw: Headers) -> frozenset[bytes]:
    """`Connection` names the headers that end with this connection."""
    values = [value.lower() for name, value in raw if name == b"connection"]
    return frozenset(name.strip() for value in values for name in value.split(b","))


def _is_whole(value: bytes) -> bool:
    """Nothing in it could end its line."""
    return _VALUE.fullmatch(value) is not None


def stream_lines(type_: bytes) -> bytes:
    """Of a stream whose head is not llama-server's."""
    return as_lines(passed_back([(b"content-type", type_)], event_stream=True))
