"""What clients meet at the production server's socket, whichever part of it answers."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fastapi import FastAPI

from app.configuration.file import parse
from app.core.manager import ModelManager
from app.main import RouterApp, create_app
from app.uvicorn_server import RouterServer, server_config
from tests.event_loops import on_both_loops
from tests.fakes import FakeLauncher, FakeProbe
from tests.serving import Client, Reply, port_of, serving, started, stop_server
from tests.stand_in import llama_server_stand_in

__all__ = ["on_both_loops"]  # fixtures

CHAT = "/v1/chat/completions"
MakeClient = Callable[[], Awaitable[Client]]


def post(*headers: str, target: str = CHAT, body: bytes = b'{"model": "m"}') -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
async def app(tiny_gguf: Path, tmp_path: Path) -> AsyncIterator[RouterApp]:
    """Its llama-server answers `{}` at once, and keeps the connection."""
    tree = {
        "api": {"cors_allow_origins": ["https://app.example"]},
        "system": {"log_dir": str(tmp_path / "logs")},
        "models": {"m": {"model_path": str(tiny_gguf)}},
    }
    async with llama_server_stand_in() as upstream:
        launcher = FakeLauncher(upstream.port)
        yield create_app(parse(json.dumps(tree), tmp_path, {}), launcher=launcher, probe=FakeProbe(10_000))


@pytest.fixture
async def connect(app: RouterApp) -> AsyncIterator[MakeClient]:
    """Clients of a server as in production."""
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(app))

        async def make() -> Client:
            client = await Client.connect(port)
            stack.callback(client.leave)
            return client

        yield make


# --- the short way


class Calls:
    """Counts the requests for which the ASGI application was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        whole_way = RouterApp.__call__

        async def counted(app: RouterApp, scope: Any, receive: Any, send: Any) -> None:
            self.count += scope["type"] == "http"
            await whole_way(app, scope, receive, send)

        monkeypatch.setattr(RouterApp, "__call__", counted)


@pytest.mark.parametrize("settings", [{}, {"proxy_headers": True}], ids=["production", "wrapped"])
async def test_a_short_request_to_a_loaded_model_never_enters_the_application(
    app: RouterApp, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Not even where uvicorn wraps the application, and the protocol could not look inside."""
    calls = Calls(monkeypatch)
    async with serving(app, **settings) as port:
        client = await Client.connect(port)
        assert (await client.ask(post())).status == 200  # loads it, and opens a connection
        calls.count = 0
        for _ in range(3):
            reply = await client.ask(post())
            assert (reply.status, reply.body) == (200, b"{}")
        client.leave()
    assert calls.count == 0


def test_an_application_without_the_short_way_is_not_served_at_all() -> None:
    stranger: Any = FastAPI()
    with pytest.raises(AttributeError):
        server_config(stranger, "127.0.0.1", 0)


# --- mistakes of ours


def a_bug(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    "said",
    [
        post("X-Request-ID: mine"),
        post("X-Request-ID: mine", "Cookie: a=b"),
        post("X-Request-ID: mine", body=b'{"model": "m", "stream": true}'),
        post("X-Request-ID: mine", target="/v1/messages"),
    ],
    ids=["short", "cookie", "stream", "anthropic"],
)
async def test_a_bug_on_a_requests_way_is_an_internal_error_with_a_traceback(
    connect: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: bytes,
    is_warm: bool,
) -> None:
    client = await connect()
    if is_warm:
        await client.ask(post())
    with monkeypatch.context() as patch:
        patch.setattr(ModelManager, "enter", a_bug)
        reply = await client.ask(said)
    is_anthropics(reply, b"/v1/messages" in said)
    assert (reply.status, reply.code) == (500, "internal_error")
    assert (reply[b"x-request-id"], b"bug" in reply.body) == (b"mine", False)
    assert_has_our_headers(reply)
    (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR and r.name.startswith("app."))
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)
    assert (await (await connect()).ask(post())).status == 200


def is_anthropics(reply: Reply, expected: bool) -> None:
    assert (json.loads(reply.body).get("type") == "error") == expected


def assert_has_our_headers(reply: Reply) -> None:
    """Those that every answer has, each once."""
    assert re.fullmatch(rb"[\w.:-]{1,128}", reply[b"x-request-id"])
    assert (reply[b"x-content-type-options"], reply[b"x-frame-options"]) == (b"nosniff", b"DENY")
    assert reply[b"content-type"].startswith(b"application/json")
    assert reply[b"date"]


# --- what is no HTTP

NO_REQUEST = [
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"HELLO\r\n\r\n",
    b"GET  HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET http://h:99999999/ HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
    post().replace(b"Content-Length: 14", b"Content-Length: abc"),
    post("Content-Length: 13"),
    post("Transfer-Encoding: chunked"),
    f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n".encode(),
    b"POST /health HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
]


@pytest.mark.parametrize("said", NO_REQUEST, ids=lambda said: repr(said[:40]))
async def test_the_answer_to_what_is_no_http_has_the_headers_of_every_answer(
    connect: MakeClient, said: bytes
) -> None:
    client = await connect()
    reply = await client.ask(said)
    assert (reply.status, reply.code) == (400, "invalid_request")
    assert_has_our_headers(reply)
    assert reply[b"connection"] == b"close"
    assert await client.rest() == b""


async def test_the_answer_to_what_is_no_http_has_the_id_that_was_sent(connect: MakeClient) -> None:
    client = await connect()
    reply = await client.ask(post("X-Request-ID: mine", "Content-Length: x"))
    assert (reply.status, reply[b"x-request-id"]) == (400, b"mine")


async def test_a_request_behind_another_ones_mistake_is_not_answered(connect: MakeClient) -> None:
    """Framing that two parsers could read in two ways ends the connection."""
    client = await connect()
    client.say(post("Transfer-Encoding: chunked") + post("X-Request-ID: smuggled"))
    assert (await client.reply()).status == 400
    assert await client.rest() == b""


async def test_the_first_request_finds_its_routes_built(
    app: RouterApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a framework builds for its first request holds up everybody else's."""
    monkeypatch.setattr("app.uvicorn_server.freeze_garbage_collection", lambda: None)
    server = RouterServer(app, "127.0.0.1", 0)
    await started(server)
    try:
        client = await Client.connect(port_of(server))
        first, second = [
            await calls_for(client, b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(2)
        ]
        client.leave()
    finally:
        await stop_server(app, server)
        if server.last_resort is not None:
            server.last_resort.cancel()
    assert first < 3 * second


async def calls_for(client: Client, request: bytes) -> int:
    """How many functions are called until it is answered, on both sides."""
    count = 0

    def on_event(_frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(on_event)
    try:
        await client.ask(request)
    finally:
        sys.setprofile(None)
    return count
