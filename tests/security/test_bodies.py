"""What a body says, small or large, on the short way or the long one: what llama-server reads in it, too."""

from __future__ import annotations

import logging

import pytest

from app.proxy.json_fields import SMALL_BYTES
from tests.security.conftest import Serve
from tests.stand_in import StandIn

CHAT = "/v1/chat/completions"
LONG = b" " * SMALL_BYTES


def post(body: bytes, *lines: str) -> bytes:
    head = [f"POST {CHAT} HTTP/1.1", "Host: localhost", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


@pytest.mark.parametrize("padding", [b"", LONG], ids=["small", "large"])
@pytest.mark.parametrize("lines", [(), ("Cookie: a=b",)], ids=["short way", "long way"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model":"nobody","model":"m"}', 200, None),  # the last one counts, as it does there
        (b'{"model":"m","model":"nobody"}', 404, "model_not_found"),
        (b'{"\\u006dodel":"m"}', 200, None),
        (b'{"model":"\\u006d"}', 200, None),
        (b'{"Model":"nobody"}', 200, None),
        (b'{"model":"m\\u0000"}', 404, "model_not_found"),
        (b'{"model":"\\ud800"}', 400, "invalid_json"),
        (b'{"model":"m","\\ud800":1}', 400, "invalid_json"),
        (b'{"model":["m"]}', 400, "invalid_request"),
        (b'{"model":{"model":"m"}}', 400, "invalid_request"),
        (b'{"x":{"model":"nobody"}}', 200, None),
        (b'{"x":"\\"","model":"nobody","y":"\\",\\"model\\":\\"m\\""}', 404, "model_not_found"),
        (b'{"model":"m","stream":"true"}', 400, "invalid_request"),
        (b'{"model":"m","stream":[true]}', 400, "invalid_request"),
        (b'{"model":"m","n":1e999}', 400, "invalid_json"),
        (b'{"model":"m"', 400, "invalid_json"),
        (b'{"model":"m"}{"model":"m"}', 400, "invalid_json"),
        (b'[{"model":"m"}]', 400, "invalid_request"),
        (b'\xef\xbb\xbf{"model":"m"}', 400, None),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_a_body_means_the_same_whatever_its_size_and_its_way(
    serve: Serve,
    upstream: StandIn,
    body: bytes,
    status: int,
    code: str | None,
    lines: tuple[str, ...],
    padding: bytes,
) -> None:
    client = await (await serve())()
    assert (await client.ask(post(b'{"model":"m"}'))).status == 200  # loaded, with a kept connection
    upstream.requests.clear()
    reply = await client.ask(post(body + padding, *lines))
    assert reply.status == status, reply.body
    if code is not None:
        assert reply.code == code
    assert [asked.partition(b"\r\n\r\n")[2] for asked in upstream.requests] == (
        [body + padding] if status == 200 else []
    ), "byte for byte, or not at all"


@pytest.mark.parametrize("length", [2**20, 2**40, 2**63 - 1])
async def test_what_is_announced_as_too_large_is_refused_before_it_comes(serve: Serve, length: int) -> None:
    connect = await serve(max_body_mb=0.5)
    for target in (CHAT, "/v1/models/load", "/upstream/m/x", "/session"):
        client = await connect()
        head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        reply = await client.ask(head.encode())
        assert (reply.status, reply.code) == (413, "request_too_large")


async def test_what_is_too_long_in_a_head_is_refused_with_a_reason(serve: Serve) -> None:
    client = await (await serve())()
    get = "GET {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n"
    for target in ("/upstream/m/" + "a" * 9000, "/v1/models?" + "a" * 9000, "/upstream/" + "/" * 9000):
        reply = await client.ask(get.format(target, "").encode(), method="GET")
        assert (reply.status, reply.code) == (414, "target_too_long")
    reply = await client.ask(get.format("/health", f"X: {'a' * 33_000}\r\n").encode(), method="GET")
    assert (reply.status, reply.code) == (431, "headers_too_large")


async def test_a_body_that_nobody_asked_for_breaks_no_answer(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The page is sent as a file, and who sends a file listens for the client's leaving only."""
    client = await (await serve(max_body_mb=0.01))()
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"
    reply = await client.ask(head + b"4e20\r\n%b\r\n0\r\n\r\n" % (b"a" * 20_000), method="GET")
    assert (reply.status, b"<title>" in reply.body) == (200, True)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
