"""Where a request begins and ends: whatever two parsers could read in two ways is refused, and ends there."""

from __future__ import annotations

import asyncio

import pytest

from tests.event_loops import on_both_loops
from tests.security.conftest import Connect, Serve
from tests.serving import Reply
from tests.stand_in import StandIn

__all__ = ["on_both_loops"]  # fixtures

MODEL = b'{"model": "m"}'
TARGETS = ("/v1/chat/completions", "/v1/models/load", "/upstream/m/tokenize")
"""One that is answered by the short way, one by the framework, one by the tunnel."""

SMUGGLED = b"GET /upstream/m/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def connect(serve: Serve) -> Connect:
    return await serve(max_body_mb=1)


def head(target: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode("latin-1")


async def said(connect: Connect, data: bytes) -> bytes:
    """All that comes back, until the router closes the connection."""
    client = await connect()
    client.say(data)
    return await client.rest()


AMBIGUOUS = {
    "two lengths": ("Content-Length: 14", "Content-Length: 15"),
    "the same length twice": ("Content-Length: 14", "Content-Length: 14"),
    "a list of lengths": ("Content-Length: 14, 14",),
    "length and chunks": ("Content-Length: 14", "Transfer-Encoding: chunked"),
    "chunks and length": ("Transfer-Encoding: chunked", "Content-Length: 14"),
    "negative": ("Content-Length: -14",),
    "plus": ("Content-Length: +14",),
    "hexadecimal": ("Content-Length: 0xe",),
    "spaces inside": ("Content-Length: 1 4",),
    "no number": ("Content-Length: fourteen",),
    "more than 64 bits": ("Content-Length: 18446744073709551630",),
    "unknown coding": ("Transfer-Encoding: identity",),
    "chunked not last": ("Transfer-Encoding: chunked, identity",),
    "chunked twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "quoted": ('Transfer-Encoding: "chunked"',),
    "a letter more": ("Transfer-Encoding: xchunked",),
    "blank before the colon": ("Transfer-Encoding : chunked",),
    "blank before the name": (" Transfer-Encoding: chunked",),
    "folded": ("Transfer-Encoding:", " chunked"),
    "vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "nul": ("Transfer-Encoding: chunked\x00",),
    "bare line feed": ("X: a\nTransfer-Encoding: chunked",),
    "bare carriage return": ("X: a\rTransfer-Encoding: chunked",),
    "no name": (": chunked",),
    "no colon": ("Transfer-Encoding",),
}


@pytest.mark.parametrize("lines", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_what_two_parsers_could_read_in_two_ways_is_refused_and_the_rest_is_not_read(
    connect: Connect, upstream: StandIn, lines: tuple[str, ...]
) -> None:
    for target in TARGETS:
        answer = await said(connect, head(target, *lines) + MODEL + SMUGGLED)
        assert answer.startswith(b"HTTP/1.1 400 "), (target, answer[:100])
        assert answer.count(b"HTTP/1.1 ") == 1, (target, answer)
    assert not [asked for asked in upstream.targets if "smuggled" in asked]


CHUNKS = {
    "no size": b"\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "negative": b"-1\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "0x": b"0xe\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "blank before": b" e\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "more than 64 bits": b"1000000000000000e\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "line feed": b"e\n" + MODEL + b"\n0\n\n",
    "too short": b"d\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "too long": b"f\r\n" + MODEL + b"\r\n0\r\n\r\n",
    "underscore": b"0_e\r\n" + MODEL + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
async def test_a_chunk_that_could_be_read_in_two_ways_is_refused(
    connect: Connect, upstream: StandIn, chunks: bytes
) -> None:
    for target in TARGETS:
        answer = await said(connect, head(target, "Transfer-Encoding: chunked") + chunks + SMUGGLED)
        assert answer.startswith(b"HTTP/1.1 400 "), (target, answer[:100])
        assert answer.count(b"HTTP/1.1 ") == 1, (target, answer)
    assert not [asked for asked in upstream.targets if "smuggled" in asked]


async def test_chunks_with_extensions_and_trailers_reach_llama_server_as_one_body(
    connect: Connect, upstream: StandIn
) -> None:
    chunks = b'7;a=b\r\n{"model\r\n7\r\n": "m"}\r\n0\r\nX-Trailer: a\r\n\r\n'
    client = await connect()
    reply = await client.ask(head("/v1/chat/completions", "Transfer-Encoding: chunked") + chunks)
    assert reply.status == 200
    (asked,) = upstream.requests
    assert asked.endswith(b"\r\n\r\n" + MODEL)
    assert b"chunked" not in asked.lower()
    assert b"trailer" not in asked.lower()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)], ids=str)
async def test_pipelined_requests_to_different_parts_are_answered_in_their_order(
    connect: Connect, order: tuple[int, ...]
) -> None:
    client = await connect()
    for number in order:
        lines = (f"X-Request-ID: {number}", f"Content-Length: {len(MODEL)}")
        client.say(head(TARGETS[number], *lines) + MODEL)
    replies = [await client.reply() for _ in order]
    assert [reply[b"x-request-id"] for reply in replies] == [b"%d" % number for number in order]
    assert {reply.status for reply in replies} <= {200, 202}


async def test_an_answer_that_comes_before_the_body_leaves_no_rest_behind(connect: Connect) -> None:
    """The body of a refused request is not the next request."""
    client = await connect()
    lines = ("Host: evil.example", f"Content-Length: {len(SMUGGLED)}")
    client.say(b"POST / HTTP/1.1\r\n" + "\r\n".join([*lines, "", ""]).encode())
    first: Reply = await client.reply()
    assert first.status == 403
    client.say(SMUGGLED + head("/v1/models/load", "X-Request-ID: next", "Content-Length: 14") + MODEL)
    assert (await client.reply())[b"x-request-id"] == b"next"


@pytest.mark.parametrize(
    "value", ["a\r\nX-Injected: 1", "a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "\u00e9", "a b", "<b>"]
)
async def test_nothing_that_a_client_sends_makes_a_header_or_an_answer_of_ours(
    connect: Connect, value: str
) -> None:
    for target in TARGETS:
        lines = (f"Content-Length: {len(MODEL)}", "Connection: close", f"X-Request-ID: {value}")
        answer = await said(connect, head(target, *lines) + MODEL)
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert b"injected" not in answer.lower()


async def test_thousands_of_half_heads_keep_nobody_waiting(connect: Connect) -> None:
    halves = [await connect() for _ in range(300)]
    for number, client in enumerate(halves):
        client.say(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: "[: 5 + number % 60])
    whole = await connect()
    reply = await whole.ask(head("/v1/chat/completions", f"Content-Length: {len(MODEL)}") + MODEL)
    assert reply.status == 200


async def test_who_pipelines_without_end_and_does_not_read_is_cut_off_without_a_traceback(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A large answer fills what the kernel takes; more than a thousand requests behind it are too many."""
    client = await connect(4096)
    client.say(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 6000)
    other = await connect()
    for _ in range(50):
        await other.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", method="GET")
    client.writer.transport.abort()
    await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.exc_info]
