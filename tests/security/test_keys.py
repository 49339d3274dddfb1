"""Who is let in, by bytes that no client library sends."""

from __future__ import annotations

import pytest

from tests.security.conftest import Serve
from tests.stand_in import StandIn

BODY = b'{"model": "m"}'
WRONG = [
    (),
    ("Authorization:",),
    ("Authorization: Bearer",),
    ("Authorization: Bearer \t",),
    ("Authorization: Basic right",),
    ("Authorization: Bearer: right",),
    ("Authorization: Bearer=right",),
    ("Authorization: Bearer right right",),
    ("Authorization: Bearer right,",),
    ("Authorization: Bearer 'right'",),
    ("Authorization: Bearer RIGHT",),
    ("Authorization: Bearer wrong", "Authorization: Bearer right"),
    ("Authorization: Bearer wrong", "X-Api-Key: right"),
    ("Proxy-Authorization: Bearer right",),
    ("X-Api-Key: wrong", "X-Api-Key: right"),
    ("X-Api-Key: right, right",),
    ("X-Api_Key: right",),
    ("Api-Key: right",),
    ("Cookie: right",),
    ("Cookie: router_session_8000=right",),
    ("Cookie: router_session_8000=", "Cookie: router_session_8000=right"),
    ("X-Forwarded-For: 127.0.0.1",),
    ("X-Original-URL: /health",),
    ("X-HTTP-Method-Override: OPTIONS",),
]
RIGHT = [
    ("Authorization: Bearer right",),
    ("authorization: bearer   right ",),
    ("Authorization: right",),  # as llama-server takes it
    ("X-API-KEY: right",),
    ("Authorization: Bearer right", "X-Api-Key: wrong"),
]


def post(target: str, *lines: str) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: localhost", *lines, f"Content-Length: {len(BODY)}", "", ""]
    return "\r\n".join(head).encode() + BODY


TARGETS = ("/v1/chat/completions", "/v1/models/load", "/upstream/m/tokenize")


@pytest.mark.parametrize("lines", WRONG, ids=str)
async def test_what_is_not_the_key_opens_nothing(
    serve: Serve, upstream: StandIn, lines: tuple[str, ...]
) -> None:
    """Also on a connection on which the right one has just been shown."""
    client = await (await serve(api_keys=["right"]))()
    for target in TARGETS:
        assert (await client.ask(post(target, *RIGHT[0]))).status in (200, 202)
        upstream.requests.clear()
        reply = await client.ask(post(target, *lines))
        assert (reply.status, reply.code) == (401, "invalid_api_key"), target
        assert not upstream.requests


@pytest.mark.parametrize("lines", RIGHT, ids=str)
async def test_the_key_is_known_in_every_form_that_clients_use(serve: Serve, lines: tuple[str, ...]) -> None:
    client = await (await serve(api_keys=["right"]))()
    for target in TARGETS:
        assert (await client.ask(post(target, *lines))).status in (200, 202), target


@pytest.mark.parametrize(
    "target",
    ["/health/../v1/models", "/health%2f..%2fv1/models", "/ui/../v1/models", "/ui/%2e%2e/v1/models",
     "//v1/models", "/v1/models;/health", "/v1/models#/health", "http://localhost/v1/models",
     "/health\\..\\vram", "/v1/models?/health", "/ui//../../v1/models", "/metrics/stream"],
)  # fmt: skip
async def test_no_spelling_of_a_path_leads_past_the_key(serve: Serve, target: str) -> None:
    client = await (await serve(api_keys=["right"]))()
    reply = await client.ask(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), method="GET")
    assert reply.status in (400, 401, 404), reply.body
    assert b'"data"' not in reply.body
