"""HTTP as clients really speak it: HEAD, packed bodies, no media type; on sockets, both event loops."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.event_loops import on_both_loops
from tests.field.environment import ANSWER, CHAT, JSON, LARGE, LOAD, SMALL, TUNNEL, ask, said, start, upstream
from tests.serving import Client, Reply, soon
from tests.stand_in import StandIn

__all__ = ["on_both_loops", "start", "upstream"]

KEY = "Authorization: Bearer boss-secret"
FORM = "Content-Type: application/x-www-form-urlencoded"
"""What curl says of a body without being told otherwise."""
Ask = Callable[..., Awaitable[Reply]]


# --- H4, R6

READABLE = ("/", "/health", "/v1/models", "/v1/models/tiny", "/v1/models/status", "/vram", "/metrics",
            "/docs", "/openapi.json", "/session", "/ui/base.css", "/v1/models/tiny/logs")  # fmt: skip
OF_THIS_MOMENT = ("/health", "/v1/models", "/v1/models/tiny", "/v1/models/status", "/vram", "/metrics")
STREAMS = ("/metrics/stream", "/v1/models/status/stream", "/v1/models/tiny/logs?follow=true")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_uptime_monitor_that_asks_with_head_gets_the_head_of_a_get(start: Any, version: str) -> None:
    port = await start()
    for path in READABLE:
        plain = await ask(port, "GET", path, "Connection: close")
        assert plain.status == 200, path
        client = await Client.connect(port)
        reply = await client.ask(said("HEAD", path, version=version), method="HEAD")
        assert (reply.status, reply[b"content-type"]) == (200, plain[b"content-type"]), path
        if path not in OF_THIS_MOMENT:
            assert reply[b"content-length"] == plain[b"content-length"], path
        else:
            assert int(reply[b"content-length"]) > 0, path
        if version == "1.0":
            assert await client.rest() == b"", "a body"
        else:
            assert (await client.ask(said("GET", "/health"), method="GET")).status == 200, "a body"
        client.leave()


@pytest.mark.parametrize("path", STREAMS)
async def test_head_of_a_stream_of_events_ends_with_its_head(start: Any, path: str) -> None:
    client = await Client.connect(await start())
    reply = await client.ask(said("HEAD", path), method="HEAD")
    assert (reply.status, reply.is_stream) == (200, True)
    assert (await client.ask(said("GET", "/health"), method="GET")).status == 200
    client.leave()


async def test_head_is_refused_as_a_get_would_be(start: Any) -> None:
    port = await start(api_keys=["boss-secret"])
    assert (await ask(port, "HEAD", "/v1/models")).status == 401
    assert (await ask(port, "HEAD", "/v1/models", KEY)).status == 200
    assert (await ask(port, "HEAD", "/nowhere", KEY)).status == 404
    wrong = await ask(port, "HEAD", CHAT, KEY)
    assert (wrong.status, wrong[b"allow"]) == (405, b"POST")
    assert (await ask(port, "DELETE", "/v1/models", KEY))[b"allow"] == b"GET, HEAD"


# --- R13


@pytest.mark.parametrize("path", STREAMS)
async def test_a_client_of_http_1_0_gets_events_and_no_chunks(start: Any, path: str) -> None:
    client = await Client.connect(await start())
    client.say(said("GET", path, version="1.0"))
    head = await client.head()
    assert (head.status, head.is_stream, head.is_last) == (200, True, True)
    assert b"transfer-encoding" not in head
    assert [value for name, value in head.headers if name == b"connection"] == [b"close"]
    if path != STREAMS[2]:  # that log is empty
        assert (await client.line()).split(b":")[0] in (b"event", b"id", b"data"), "no size of a chunk"
    client.leave()


async def test_an_answer_for_a_model_comes_without_chunks_on_the_long_way_too(
    start: Any, upstream: StandIn
) -> None:
    """The long way: the framework answers pages of other origins. nginx speaks HTTP/1.0 by default."""
    port = await start(cors_allow_origins=["https://chat.example"])
    client = await Client.connect(port)
    headers = (JSON, "Origin: https://chat.example")
    for target in (CHAT, TUNNEL):
        reply = await ask(port, "POST", target, *headers, body=SMALL, version="1.0")
        assert (reply.status, reply.body) == (200, ANSWER)
        assert b"transfer-encoding" not in reply
    client.say(said("GET", "/metrics", version="1.0"))
    head = await client.head()
    assert b"transfer-encoding" not in head
    assert b"router_models_loaded" in await client.rest()


@pytest.mark.parametrize("target", [CHAT, TUNNEL, LOAD])
@pytest.mark.parametrize(("version", "more"), [("1.0", ()), ("1.1", ("Connection: close",))])
async def test_who_still_sends_when_it_is_refused_is_not_cut_off(
    start: Any, target: str, version: str, more: tuple[str, ...]
) -> None:
    """nginx made a 502 of the refusal of a large body: its connection was reset before it read the answer."""
    port, body = await start(api_keys=["boss-secret"]), bytes(3 * 2**20)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    whole = said("POST", target, JSON, *more, body=body, version=version)
    head, body = whole[: -len(body)], whole[-len(body) :]
    writer.write(head)
    assert (await soon(reader.readline())).startswith(b"HTTP/1.1 401 ")
    writer.write(body)
    await soon(writer.drain())
    assert b'"code":"invalid_api_key"' in await soon(reader.read())
    writer.close()


async def test_a_client_of_http_1_0_is_told_nothing_before_its_answer(start: Any) -> None:
    port = await start()
    for target in (CHAT, LOAD):
        client = await Client.connect(port)
        client.say(said("POST", target, JSON, "Expect: 100-continue", body=SMALL, version="1.0"))
        assert (await client.rest()).count(b"HTTP/1.1 ") == 1
    client = await Client.connect(port)
    assert (await client.ask(said("POST", LOAD, JSON, "Expect: 100-continue", body=SMALL))).status in (
        200,
        202,
    )


async def test_a_client_that_begins_with_http_2_is_refused_and_does_not_wait(start: Any) -> None:
    """In frames: such a client reads nothing else, and tells its user the reason that they hold."""
    client = await Client.connect(await start())
    client.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    answer = await client.rest()
    settings, goaway = answer[:9], answer[9:]
    assert settings == b"\0\0\0\4\0\0\0\0\0"
    assert (int.from_bytes(goaway[:3], "big"), goaway[3]) == (len(goaway) - 9, 7)
    assert int.from_bytes(goaway[13:17], "big") == 13  # HTTP_1_1_REQUIRED
    assert goaway[17:] == b"HTTP/2 is not spoken here, HTTP/1.1 is."


@pytest.mark.parametrize("before", [b"", said("GET", "/health"), said("POST", CHAT, JSON, body=SMALL)])
async def test_lines_that_end_in_lf_alone_are_answered_and_not_waited_for(start: Any, before: bytes) -> None:
    """Typed into netcat, or made by a script: no end of a head that a parser takes ever comes."""
    client = await Client.connect(await start())
    if before:
        assert (await client.ask(before)).status == 200
    client.say(b"GET /health HTTP/1.1\nHost: localhost\n\n")
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"CR LF" in answer


@pytest.mark.parametrize("version", ["2.0", "3.0", "9.9"])
async def test_a_request_of_another_version_is_told_which_one_is_spoken(start: Any, version: str) -> None:
    client = await Client.connect(await start())
    client.say(said("GET", "/health", version=version))
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


# --- H2

BOMB = gzip.compress(b" " * 2**22)


def chunked(body: bytes) -> bytes:
    half = len(body) // 2
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZIP", "identity, gzip"])
async def test_a_packed_body_is_unpacked(start: Any, upstream: StandIn, name: str) -> None:
    port = await start()
    for target in (CHAT, TUNNEL):
        for plain in (SMALL, LARGE):
            for version in ("1.1", "1.0"):
                headers = (JSON, f"Content-Encoding: {name}")
                reply = await ask(port, "POST", target, *headers, body=gzip.compress(plain), version=version)
                assert (reply.status, reply.body) == (200, ANSWER)
                head, _, body = upstream.requests[-1].partition(b"\r\n\r\n")
                assert body == plain
                assert b"content-encoding" not in head.lower()


async def test_a_packed_body_may_come_in_chunks(start: Any, upstream: StandIn) -> None:
    port = await start()
    head = said("POST", CHAT, JSON, "Content-Encoding: gzip", "Transfer-Encoding: chunked")
    client = await Client.connect(port)
    assert (await client.ask(head + chunked(gzip.compress(LARGE)))).status == 200
    assert upstream.requests[-1].endswith(LARGE)
    client.leave()


async def test_what_manages_models_may_be_packed_too(start: Any) -> None:
    port = await start()
    body = gzip.compress(b'{"model": "tiny"}')
    assert (await ask(port, "POST", LOAD, JSON, "Content-Encoding: gzip", body=body)).status == 202


@pytest.mark.parametrize("target", [CHAT, TUNNEL, LOAD, "/session"])
async def test_a_bomb_is_too_large(start: Any, upstream: StandIn, target: str) -> None:
    port = await start(max_body_mb=1)
    reply = await ask(port, "POST", target, JSON, "Content-Encoding: gzip", body=BOMB)
    assert (reply.status, reply.code) == (413, "request_too_large")
    assert not upstream.requests


@pytest.mark.parametrize("target", [CHAT, TUNNEL, LOAD])
@pytest.mark.parametrize(
    "body",
    [b"not packed", gzip.compress(SMALL)[:-9], gzip.compress(SMALL) + b"x", zlib.compress(SMALL)],
    ids=["plain", "cut", "more", "zlib"],
)
async def test_what_is_not_gzip_is_told(start: Any, upstream: StandIn, target: str, body: bytes) -> None:
    reply = await ask(await start(), "POST", target, JSON, "Content-Encoding: gzip", body=body)
    assert (reply.status, reply.code) == (400, "invalid_request")
    assert b"gzip" in reply.body
    assert not upstream.requests


@pytest.mark.parametrize("target", [CHAT, TUNNEL, LOAD])
@pytest.mark.parametrize("name", ["deflate", "br", "zstd", "gzip, gzip", "aes128gcm"])
async def test_an_encoding_that_is_not_taken_is_named(start: Any, target: str, name: str) -> None:
    reply = await ask(await start(), "POST", target, JSON, f"Content-Encoding: {name}", body=b"some")
    assert (reply.status, reply.code) == (415, "unsupported_media_type")
    assert name in json.loads(reply.body)["error"]["message"]
    assert (reply[b"accept-encoding"], reply[b"x-should-retry"]) == (b"gzip", b"false")


# --- H8


@pytest.mark.parametrize("target", [CHAT, LOAD])
@pytest.mark.parametrize("media_type", [FORM, "Content-Type: text/plain", "Content-Type: "])
async def test_curl_without_a_media_type_is_served_with_a_key(
    start: Any, upstream: StandIn, target: str, media_type: str
) -> None:
    port = await start(api_keys=["boss-secret"])
    for key in (KEY, "X-Api-Key: boss-secret"):
        reply = await ask(port, "POST", target, key, media_type, body=SMALL)
        assert reply.status in (200, 202), reply.body
    if target == CHAT:
        head = upstream.requests[-1].partition(b"\r\n\r\n")[0].lower()
        assert head.count(b"content-type") == 1
        assert b"content-type: application/json" in head, "llama-server takes 8 KB of a form"


@pytest.mark.parametrize("target", [CHAT, LOAD])
async def test_without_a_key_a_form_is_refused_as_ever(start: Any, upstream: StandIn, target: str) -> None:
    reply = await ask(await start(), "POST", target, FORM, body=SMALL)
    assert (reply.status, reply.code) == (415, "unsupported_media_type")
    locked = await start(api_keys=["boss-secret"])
    assert (await ask(locked, "POST", target, FORM, "Authorization: Bearer x", body=SMALL)).status == 401
    session = await ask(locked, "POST", "/session", JSON, body=b'{"key":"boss-secret"}')
    cookie = "Cookie: " + session[b"set-cookie"].decode().partition(";")[0]
    reply = await ask(locked, "POST", target, FORM, cookie, body=SMALL)
    assert (reply.status, reply.code) == (415, "unsupported_media_type"), "a page's form sends the cookie too"
    assert not upstream.requests
